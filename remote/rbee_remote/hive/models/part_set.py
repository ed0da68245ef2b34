"""The unfinished files of one model: one, or the parts of a split model, which become the target together.

Rules
- A part that has come whole stays a part until all have: a download that goes on finds each where it was left.
- All parts are open and locked for as long as one is fetched: nobody else writes one, and no clean-up takes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rbee_remote.hive.models.fetch import OnBytes, check_room, fetch
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import Fetched, PartFile, Problem, Retryable, Wanted, open_part
from rbee_remote.protocol.splits import digest_of_parts, numbered


class PartSet:
    """The parts beside `target`, which is the name that one file would get. first: the part of that name, open; it
    stands for all of them to whoever downloads the same model. Used in a `with`."""

    def __init__(self, target: Path, first: PartFile) -> None:
        self._target = target
        self._first = first
        self._parts: dict[int, list[PartFile]] = {}
        #: By target, what has come in a try before.
        self._whole: dict[Path, Wanted] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PartSet:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def whole(self) -> int:
        """How many have come."""
        return len(self._whole)

    def fetch(self, client: httpx.Client, wanted: Sequence[Wanted], on_bytes: OnBytes, sha256: str = "") -> Fetched:
        """One try at all that is not here yet; what came as a whole. sha256: of that, "" where nobody knows it.

        Raises as `fetch.fetch` does.
        """
        parts = self._open(len(wanted))
        _check_room(parts, wanted)
        for part, one in zip(parts, wanted, strict=True):
            known = self._whole.get(part.target)
            if known is None or not known.is_same(one):
                fetch(client, one, part, _of_all(part, parts, wanted, on_bytes))
                self._whole[part.target] = one
        digests = tuple(part.sha256 for part in parts)
        found = digest_of_parts(digests)
        if sha256 not in ("", found):
            self._whole.clear()
            for part in parts:
                part.discard()
            raise Retryable(Problem.CORRUPT, "the checksum of all parts is wrong")
        for part in parts:
            part.finish()
        return Fetched(sum(part.size for part in parts), found, digests)

    def _open(self, count: int) -> list[PartFile]:
        if count == 1:
            return [self._first]
        if count not in self._parts:
            names = [numbered(self._target.name, number, count) for number in range(1, count + 1)]
            opened = [self._stack.enter_context(open_part(self._target.with_name(name))) for name in names]
            self._parts[count] = opened
        return self._parts[count]


def _check_room(parts: Sequence[PartFile], wanted: Sequence[Wanted]) -> None:
    """For all parts at once. Raises RemoteError DISK_FULL."""
    sizes = [one.likely_size for one in wanted]
    if len(parts) > 1:
        missing = [max(size - part.on_disk, 0) for part, size in zip(parts, sizes, strict=True) if size is not None]
        check_room(parts[0].target, sum(missing))


def _of_all(part: PartFile, parts: Sequence[PartFile], wanted: Sequence[Wanted], on_bytes: OnBytes) -> OnBytes:
    """Bytes of one part as bytes of all."""
    if len(parts) == 1:
        return on_bytes
    others = sum(other.on_disk for other in parts if other is not part)
    sizes = [one.likely_size for one in wanted]
    total = None if None in sizes else sum(size for size in sizes if size is not None)

    def report(done: int, _: int | None) -> None:
        on_bytes(others + done, total)

    return report
