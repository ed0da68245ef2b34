"""What makes rbee run by itself: `gc` by a line for crontab or two units for systemd, `serve` by one unit. Pure;
nothing is installed."""

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
    start = _start(command, variables)
    return Schedule(
        crontab=f"*/{EVERY_MINUTES} * * * * {line}",
        service=f"[Unit]\nDescription=Clean up after rbee\n\n[Service]\nType=oneshot\n{start}",
        timer="[Unit]\nDescription=Clean up after rbee now and then\n\n"
        f"[Timer]\nOnCalendar=*:0/{EVERY_MINUTES}\nRandomizedDelaySec=60\n\n[Install]\nWantedBy=timers.target\n",
    )


def gateway_unit(command: Sequence[str], variables: Mapping[str, str], drain_s: float) -> str:
    """The unit `rbee-serve.service`. drain_s: seconds that the gateway takes to end, at most.

    Only the gateway itself is ended with it (KillMode): the node `local` runs in the same group of processes, and its
    workers outlive whoever asks them, as on every node.
    """
    return (
        "[Unit]\nDescription=One endpoint for all nodes of rbee\n\n"
        f"[Service]\nType=exec\n{_start(command, variables)}ExecReload=/bin/kill -HUP $MAINPID\n"
        f"Restart=on-failure\nRestartSec=2\nKillMode=process\nTimeoutStopSec={drain_s + 15:g}\n"
        "NoNewPrivileges=yes\n\n"
        "[Install]\nWantedBy=default.target\n"
    )


def _start(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """The lines of a unit that say what is run, with which environment."""
    environment = "".join(f"Environment={_unit_word(f'{name}={value}')}\n" for name, value in variables.items())
    start = " ".join(_unit_word(word).replace("$", "$$") for word in command)
    return f"{environment}ExecStart={start}\n"


def _unit_word(word: str) -> str:
    """A word as systemd reads it: quoted where it has to be, without its specifiers."""
    word = word.replace("%", "%%")
    if not any(character in word for character in " \t\"'\\"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
