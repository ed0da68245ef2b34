"""What running processes use of rbee's folders: named in a command line, open, mapped, or run from.

A runtime is used by whoever runs from it, although its `bin/python` is a link to somewhere else: its command line and
its mapped libraries tell. Paths are compared as they are written and with links resolved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from rbee_remote.sweep.processes import Ours
from rbee_remote.system.interface import System

#: What goes on with a name: `a.zip` is not used by one who names `a.zip.part`. A `;` after it may be a shell's.
_NAME_GOES_ON = re.compile(r"[\w.+-]")


class Usage:
    """Who uses what at one moment."""

    def __init__(self, found: Iterable[tuple[str, str]], roots: Sequence[tuple[str, str]]) -> None:
        """found: (user, path). roots: (folder with links resolved, the same as the keeper names it)."""
        self._used: list[tuple[str, str]] = []
        for user, path in found:
            for real, given in roots:
                if path.startswith(real):
                    self._used.append((user, given + path[len(real) :]))
            self._used.append((user, path))

    @classmethod
    def of(cls, system: System, home: str, run_dir: str, ours: Sequence[Ours]) -> Usage:
        labels = {one.process.pid: one.label for one in ours}
        roots = [(os.path.realpath(folder), folder) for folder in (home, run_dir)]
        searched = sorted({folder for root in roots for folder in root})
        found = [(labels.get(pid, f"pid {pid}"), path) for pid, path in system.mentions(searched)]
        found += [(one.label, one.socket) for one in ours if one.socket]
        return cls(found, roots)

    def user(self, path: str) -> str:
        """One who uses the file, or something in the folder; "" where there is none."""
        length = len(path)
        for user, used in self._used:
            if used.startswith(path) and not _NAME_GOES_ON.match(used, length):
                return user
        return ""
