"""The files of a model on this machine, by the first one's path: that one, or all parts of a split model."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from rbee_remote.protocol.splits import parts_of
from rbee_remote.system.hashing import stamp

#: What the name of a note adds to a file's: no record may need it.
UNNEEDED = ".unneeded"


@dataclass(frozen=True, slots=True)
class Look:
    """size: bytes of all files. stamp: how they look, as `hashing.stamp` has it, one after the other.
    changed_ns: the latest change of content, in nanoseconds since 1970."""

    size: int
    stamp: str
    changed_ns: int


def files_of(path: Path) -> tuple[Path, ...]:
    """In the parts' order; nothing is looked at."""
    return tuple(path.with_name(name) for name in parts_of(path.name))


def look(path: Path) -> Look:
    """Raises OSError for the first file that is not there, or that this user cannot come to; FileNotFoundError for what
    is no file."""
    seen = [_status(file) for file in files_of(path)]
    size = sum(status.st_size for status in seen)
    return Look(size, ";".join(map(stamp, seen)), max(status.st_mtime_ns for status in seen))


def missing_files(path: Path) -> list[Path]:
    """Those that are not there, or that this user cannot come to."""
    return [file for file in files_of(path) if not _is_there(file)]


def _is_there(path: Path) -> bool:
    try:
        _status(path)
    except (OSError, ValueError):
        return False
    return True


def _status(path: Path) -> os.stat_result:
    seen = path.stat()
    if not stat.S_ISREG(seen.st_mode):
        raise FileNotFoundError(f"{path} is no file")
    return seen
