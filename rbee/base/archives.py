"""Zip files that somebody else made, read in bounded memory.

The directory of a zip is read at once, however long it claims to be, and a file in it unpacks to a thousand times its
size. So: the directory has a bound, each file and all together have one, and they are read piece by piece.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: Bytes of the zip that are read at once: ten times a directory of thousand files, and more than a piece.
LARGEST_READ = 2 * 2**20
PIECE = 2**20
#: Of an entry: it is encrypted, or a patch of another file. zipfile reads neither.
_UNREADABLE = 0x01 | 0x20 | 0x40

#: What reading an archive raises where it is none, or not what it says: zipfile lists it nowhere, its source has it.
Nonsense = (KeyError, ValueError, RuntimeError, OverflowError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Files in an archive, bytes of each when unpacked, and of all together."""

    files: int
    each: int
    all: int


@contextmanager
def opened(path: Path, bounds: Bounds) -> Iterator[zipfile.ZipFile]:
    """An archive within bounds. Raises OSError and `Nonsense`, as reading it does."""
    with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        sizes = [entry.file_size for entry in entries]
        if len(sizes) > bounds.files or max(sizes, default=0) > bounds.each or sum(sizes) > bounds.all:
            raise ValueError(f"{len(sizes)} files of {sum(sizes)} bytes are more than such an archive has")
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
            raise ValueError("it is compressed in a way that wheels are not")
        if any(entry.flag_bits & _UNREADABLE for entry in entries):
            raise ValueError("it has files that are encrypted, or that patch others")
        yield archive


def pieces(source: IO[bytes]) -> Iterator[bytes]:
    """What is left of a file, 1 MiB at a time. zipfile gives no more than the size that the directory says."""
    while piece := source.read(PIECE):
        yield piece


class _Bounded(io.FileIO):
    """A file that is never read in large pieces."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = LARGEST_READ + 1 if size is None or size < 0 else min(size, LARGEST_READ + 1)
        data = super().read(wanted) or b""
        if len(data) > LARGEST_READ:
            raise ValueError("its table of contents is too large")
        return data
