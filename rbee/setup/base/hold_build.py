"""Holds the folder of a build, from the shell that builds: `python -I -c THIS FOLDER SECONDS <>LOCK`. Run here and on
nodes, so it imports the standard library alone, and works with Python 3.9.

Rules
- The lock is that of stdin's open file. The shell keeps it, and so does what it starts down to ninja: a program that
  closes all other files for its children leaves them their stdin. So it is free when the last of them has ended.
- Compilers have a stdin of their own, but work in the folder: where /proc tells, they are waited for as well.
"""

import fcntl
import sys
import time
from pathlib import Path

#: Seconds between two looks.
PAUSE_S = 0.2


def main(folder: str, patience: str) -> None:
    """Return once the folder is ours. Ends with a message when somebody works in it for longer than `patience`."""
    inside, until, told = Path(folder).resolve(), time.monotonic() + float(patience), False
    while user := _user(inside):
        if time.monotonic() >= until:
            sys.exit(f"error: {user} still works in {folder}")
        if not told:
            sys.stdout.write(f"waiting for {user}, which ends\n")
            sys.stdout.flush()
        told = True
        time.sleep(PAUSE_S)


def _user(folder: Path) -> str:
    """Who else works there, "" for nobody."""
    try:
        fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "an earlier build"
    except OSError:  # a disk without locks
        pass
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(folder):
                return f"process {entry.name} of an earlier build"
        except OSError:  # gone, or somebody else's
            continue
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
