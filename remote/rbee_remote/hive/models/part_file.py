"""The unfinished download beside its target: what of a file has come, and what it is a part of.

Beside the target lie NAME.part and, as JSON in NAME.part.json, what the part is a part of. It is continued only when
it is of the same thing: the same checksum, or where nobody knows one, the same URL and the same strong ETag, which
the server itself compares (If-Range).
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from rbee_remote.hive.models.catalog import sync_folder
from rbee_remote.system.hashing import add_file


class Problem(enum.Enum):
    """Why a try failed. NO_NETWORK: no server was reached. CORRUPT: all bytes came, and they are the wrong ones."""

    NO_NETWORK = "no network"
    BROKEN = "broken"
    CORRUPT = "corrupt"


class Retryable(Exception):
    """A try failed in a way that another one may not. retry_after: seconds that the server asks for."""

    def __init__(self, problem: Problem, reason: str, *, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.problem = problem
        self.reason = reason
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Wanted:
    """sha256 and size: empty and None where nobody knows them. token: for the URL's own host, not for redirects.
    expected: bytes that a server promises, where nobody knows the size."""

    url: str
    sha256: str
    size: int | None
    token: str = ""
    expected: int | None = None

    def is_same(self, other: Wanted) -> bool:
        """Whether it is the same content: by address, which may be signed anew each time, where nobody knows more."""
        return self.sha256 == other.sha256 if self.sha256 else self.url == other.url

    @property
    def likely_size(self) -> int | None:
        """For the room that it takes and the bar that shows it."""
        return self.expected if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class Fetched:
    """size, sha256: as in ModelInfo. parts: the SHA-256 of each file, in order."""

    size: int
    sha256: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _PartOf:
    """What a part is a part of, as kept beside it. address: digest of the URL, whose query can hold a signature."""

    address: str = ""
    sha256: str = ""
    etag: str = ""

    def is_same(self, wanted: Wanted) -> bool:
        if wanted.sha256:
            return wanted.sha256 == self.sha256
        return _digest(wanted.url) == self.address and bool(self.etag)


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


class PartFile:
    """The unfinished download beside `target`; made by `open_part`, which keeps others from writing it."""

    def __init__(self, target: Path, file: BinaryIO) -> None:
        self.target = target
        self.path = _part_path(target)
        self._file = file
        self._digest = hashlib.sha256()
        self._note = target.with_name(f"{target.name}.part.json")
        self.size = 0
        self.etag = ""

    def prepare(self, wanted: Wanted) -> None:
        """Keep what is there if it is of the same thing, else begin anew."""
        known = self._read_note()
        if known.is_same(wanted):
            self.etag = known.etag
            self._digest = hashlib.sha256()
            add_file(self._digest, self.path)
            self.size = self._file.seek(0, os.SEEK_END)
        else:
            self.restart(wanted, etag="")

    def restart(self, wanted: Wanted, *, etag: str) -> None:
        self.discard()
        self.etag = etag
        self._note.write_text(json.dumps(asdict(_PartOf(_digest(wanted.url), wanted.sha256, etag))))

    def discard(self) -> None:
        """Nothing of it is worth keeping."""
        self._file.seek(0)
        self._file.truncate()
        self._digest, self.size, self.etag = hashlib.sha256(), 0, ""

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def on_disk(self) -> int:
        """Bytes of it that are here, whether or not they are of what is wanted now."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    @property
    def sha256(self) -> str:
        """Of what has come, once it was prepared."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Keep what came, for the next try, unless nothing came. Whoever waits for the lock looks again."""
        self._file.flush()
        if not os.fstat(self._file.fileno()).st_size and self.path.exists():
            self.path.unlink()
            self._note.unlink(missing_ok=True)

    def check(self, wanted: Wanted, total: int | None) -> None:
        """Raises Retryable when something is missing (BROKEN) or wrong (CORRUPT; the part is then gone)."""
        size = total if wanted.size is None else wanted.size
        wrong_size = size is not None and self.size != size
        if total is not None and self.size < total and not (size is not None and self.size > size):
            raise Retryable(Problem.BROKEN, f"the connection ended after {self.size} of {total} bytes")
        if wrong_size or (wanted.sha256 and self._digest.hexdigest() != wanted.sha256):
            what = f"{self.size} bytes instead of {size}" if wrong_size else "the checksum is wrong"
            self.restart(wanted, etag="")
            raise Retryable(Problem.CORRUPT, what)

    def finish(self) -> None:
        """Make the part the target, durably."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.path.replace(self.target)
        self._note.unlink(missing_ok=True)
        sync_folder(self.target.parent)

    def _read_note(self) -> _PartOf:
        try:
            known = json.loads(self._note.read_text())
            return _PartOf(address=str(known["address"]), sha256=str(known["sha256"]), etag=str(known["etag"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return _PartOf()  # a part of which nobody knows what it is a part of is not continued


def _part_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


@contextmanager
def open_part(target: Path) -> Iterator[PartFile]:
    """The part of `target`, locked; waits while another process downloads the same. Raises OSError."""
    path = _part_path(target)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        # The one we waited for has perhaps renamed the part: then ours is a finished model now.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()
    with file:
        part = PartFile(target, file)
        try:
            yield part
        finally:
            part.close()
