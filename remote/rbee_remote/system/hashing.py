"""SHA-256 of files that can have tens of gigabytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK = 1024 * 1024


def sha256_of(path: Path) -> str:
    """Lower-case hex. Raises OSError."""
    digest = hashlib.sha256()
    add_file(digest, path)
    return digest.hexdigest()


def stamp(seen: os.stat_result) -> str:
    """How a file looks, which is different when it is another, or was written to: size, times of content and inode, and
    inode. Two writes within one step of the file system's clock look the same."""
    return f"{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}:{seen.st_ino}"


def add_file(digest: _Hash, path: Path) -> None:
    """Feed a file's content to `digest`; the interpreter's lock is free meanwhile."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
