"""A folder as a gzipped tar archive that is the same bytes each time: no times, no owners, and its files in order."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import IO


def pack(folder: Path, into: IO[bytes], level: int) -> None:
    """What is below a folder, links as links. level: of compression, 1 to 9."""
    with (
        gzip.GzipFile("", "wb", compresslevel=level, fileobj=into, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry
