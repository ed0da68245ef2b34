"""How a command leaves a `holder` behind.

Rules
- Imported by every `infer` over SSH that goes directly: nothing heavy, and nothing of what the holder runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rbee.base import installation
from rbee.link import place
from rbee.link.client import connected

#: The module that is run as the holder: it knows the commands.
PROGRAM = "rbee.cli.holder"


@dataclass(frozen=True, slots=True)
class Plan:
    """node: to connect to. inventory: absolute, None for none. persist_s: how long it stays after its last use.
    leader: the process that leads the session it comes from, 0 where that cannot be told."""

    node: str
    inventory: str | None
    persist_s: float
    leader: int

    def words(self) -> str:
        return json.dumps([self.node, self.inventory, self.persist_s, self.leader])

    @classmethod
    def read(cls, words: str) -> Plan:
        """Of `words`."""
        return cls(*json.loads(words))


def leave(node: str, inventory: Path | None, persist_s: float) -> None:
    """Leave a holder behind, where that is wanted and none is there: a command has used the connection to `node`.

    Without a terminal (cron, CI, a service) nobody is going to type the next command, and none is left unless
    $RBEE_LINK says so.
    """
    wanted = os.environ.get(place.VARIABLE)
    if persist_s <= 0 or wanted == "off" or (wanted != "on" and not _has_terminal()):
        return
    leader = os.getsid(0)
    if leader == os.getpid() or (leader and not _is_running(leader)):
        return
    there = connected()
    if there is not None:
        there.close()
        return
    plan = Plan(node, str(inventory.absolute()) if inventory else None, persist_s, leader)
    with contextlib.suppress(OSError):
        process = subprocess.Popen(
            [*installation.python(), "-m", PROGRAM, plan.words()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, **place.own_home()},
            start_new_session=True,
        )
        process.returncode = 0  # it is not waited for, and says nothing of that


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, such as login's
        return True
    return True


def _has_terminal() -> bool:
    """Whether there is a controlling terminal, wherever the streams go."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
