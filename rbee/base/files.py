"""Files of this machine that travel to nodes, known by their contents."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalFile:
    """path: here. sha256: lower-case hex of the whole content."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> LocalFile:
        """Reads the file once."""
        return cls(path, file_sha256(path))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def source(self) -> Path:
        return self.path

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def file_sha256(path: Path) -> str:
    """Lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
