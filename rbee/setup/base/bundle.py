"""Several wheels as one file: a file costs a node a shell and a dozen small programs, whatever its size."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from rbee.base.files import LocalFile


@dataclass(frozen=True, slots=True)
class Bundle:
    """A file that is made in memory: of packages that a lock names, of some ten megabytes. sha256: lower-case hex."""

    name: str
    source: bytes = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, name: str, files: Sequence[LocalFile]) -> Bundle:
        """The same bytes for the same files. Not compressed: wheels are."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for file in files:
                data = file.path.read_bytes()
                entry = tarfile.TarInfo(file.name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        source = buffer.getvalue()
        return cls(name, source, hashlib.sha256(source).hexdigest())

    @property
    def size(self) -> int:
        return len(self.source)
