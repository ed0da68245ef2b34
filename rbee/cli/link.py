"""`rbee link`: the process that holds connections between commands."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.shell import Shell, command, group

#: For a holder to be gone after it was told.
_END_S = 8.0


def register(app: typer.Typer) -> None:
    link = group(app, "link", "The connections that are held between commands.")
    command(link, "status", example="rbee link status --json")(status)
    command(link, "stop", example="rbee link stop")(stop)


def status(shell: Shell) -> None:
    """Show which connections are held, since when and until when."""
    from rbee.link.client import ask

    answer = (ask("status") or {}).get("status")
    if answer is None:
        shell.renderer.done("no connections are held", {"held": None})
        return
    shell.renderer.record(status_record(answer) if not shell.options.json else answer)


def stop(shell: Shell) -> None:
    """Close the connections that are held, and end the process that holds them; running commands are canceled."""
    from rbee.link.client import ask, connected

    answer = ask("stop")
    if answer is None:
        shell.renderer.done("no connections are held", {"stopped": None})
        return
    if "lasts" in answer:
        raise UsageError(
            f"process {answer['lasts']}, a running `rbee serve`, holds the connections", hint="stop that process"
        )
    until = time.monotonic() + _END_S
    while (there := connected()) is not None and time.monotonic() < until:
        there.close()
        time.sleep(0.02)
    shell.renderer.done(f"stopped process {answer['stopping']}", {"stopped": answer["stopping"]})


def status_record(answer: dict[str, Any]) -> dict[str, Any]:
    """For people."""
    from rbee.render.text import clock_time

    def of(held: dict[str, Any]) -> str:
        idle = "in use" if held["idle_s"] is None else f"idle for {clock_time(held['idle_s'])}"
        return f"{held['node']} (for {clock_time(held['since_s'])}, {idle})"

    left = answer.get("left_s")
    return {
        "process": answer["pid"],
        "is": "rbee serve" if answer["gateway"] else "left by a command",
        "since": datetime.fromtimestamp(answer["since"], UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "ends": f"after {clock_time(left)} without use" if left is not None else "with the gateway",
        "commands": answer["commands"],
        "nodes": [of(held) for held in answer["held"]],
    }
