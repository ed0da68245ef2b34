"""SHA-256 of files that can have tens of gigabytes."""

from __future__ import annotations

import hashlib
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


def add_file(digest: _Hash, path: Path) -> None:
    """Feed a file's content to `digest`; the interpreter's lock is free meanwhile."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
