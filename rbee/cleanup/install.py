"""What makes `rbee gc` run by itself: a line for crontab, or two units for systemd. Pure; nothing is installed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A worker that hangs in its end costs its memory for so long at most.
EVERY_MINUTES = 15


@dataclass(frozen=True, slots=True)
class Schedule:
    """crontab: one line. service, timer: the contents of the units `rbee-gc.service` and `rbee-gc.timer`."""

    crontab: str
    service: str
    timer: str


def schedule(command: Sequence[str], variables: Mapping[str, str]) -> Schedule:
    """How to run `command` every quarter of an hour with `variables` in its environment, wherever it is started."""
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    line = f"{settings} {shlex.join(command)}".strip().replace("%", r"\%")  # cron's sign for a new line
    environment = "".join(f"Environment={_unit_word(f'{name}={value}')}\n" for name, value in variables.items())
    start = " ".join(_unit_word(word).replace("$", "$$") for word in command)
    return Schedule(
        crontab=f"*/{EVERY_MINUTES} * * * * {line}",
        service=f"[Unit]\nDescription=Clean up after rbee\n\n[Service]\nType=oneshot\n{environment}ExecStart={start}\n",
        timer="[Unit]\nDescription=Clean up after rbee now and then\n\n"
        f"[Timer]\nOnCalendar=*:0/{EVERY_MINUTES}\nRandomizedDelaySec=60\n\n[Install]\nWantedBy=timers.target\n",
    )


def _unit_word(word: str) -> str:
    """A word as systemd reads it: quoted where it has to be, without its specifiers."""
    word = word.replace("%", "%%")
    if not any(character in word for character in " \t\"'\\"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
