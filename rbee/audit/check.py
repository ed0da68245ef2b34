"""Whether the record of who did what is whole, here and on nodes; and its last entries.

Rules
- A log of any length is read line by line.
- A node can say what it likes: what is kept of it is bounded, and it has the time of `each`, which no other waits for.
- Both logs may be written to meanwhile, which is no break. So what one shows of the other is read before that other.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rbee.audit.cross_check import Note, NotesOnKeeper, notes_on_nodes, place_of
from rbee.audit.reading import snapshot
from rbee.base.errors import ConfigError, NodeError
from rbee.base.events import silent
from rbee.base.settings import Settings
from rbee.base.who import host, user
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.session import NodeSession, PerNode, on_each
from rbee.transport.connection import Connection, quote
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.audit import AUDIT_HEAD, AUDIT_LOG, MAX_BREAKS, AuditBreak, AuditHead, Verifier, unpack_head
from rbee_remote.protocol.audit_log import ROTATED

#: How often a log is looked at that is put away under another name while it is read.
_LOOKS = 3
#: Bytes of a node's logs that are read: 32 that were put away, and of each 20,000 workers were started.
MOST_BYTES = 256 * 2**20
_MOST_FILES = 1000
_DIGIT = "[0-9]"
#: After so many lines others have a turn: a node may send more short ones at once than are looked at in its time.
_LINES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class FileBreak:
    """file: where it lies. line: counted from 1. reason: a clause."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one log. files: that were read, none where nothing was ever recorded. lines: in all of them.

    missing: a clause about what the other side's record shows and this one lacks, "" for nothing.
    on_keeper: of a node's, what it shows of this keeper's record.
    """

    files: tuple[str, ...]
    lines: int
    breaks: tuple[FileBreak, ...]
    missing: str = ""
    on_keeper: tuple[Note, ...] = ()


class _Reading:
    """Takes a log file by file, line by line. seen: the head as it was before the reading began, as in `Verifier`.

    wanted: what the other side noted of this log. on_keeper: collects what this one, a node's, notes of the keeper's.
    """

    def __init__(
        self,
        folder: str,
        seen: AuditHead | None = None,
        wanted: Sequence[Note] = (),
        on_keeper: NotesOnKeeper | None = None,
    ) -> None:
        self._folder, self._seen = folder, seen
        self._wanted = {note.digest: note for note in wanted}
        self._on_keeper = on_keeper
        self._files: list[str] = []
        self._breaks: list[FileBreak] = []
        self._verifier = Verifier(seen=seen)
        self._lines = self._in_file = 0

    def begin(self, name: str) -> None:
        """The lines that follow are of this file, and continue those of the one before."""
        if self._files:
            self._report(self._verifier.breaks)
        self._files.append(f"{self._folder}/{name}")
        self._verifier, self._in_file = Verifier(self._verifier.digest, self._seen), 0

    def take(self, line: bytes, *, is_whole: bool = True) -> None:
        """is_whole: whether the line had its newline."""
        self._verifier.take(line)
        self._wanted.pop(self._verifier.digest, None)
        if self._on_keeper:
            self._on_keeper.take(line)
        self._lines += 1
        self._in_file += 1
        if not is_whole:
            self._report([AuditBreak(self._in_file, "it is cut short")])

    def end(self, head: AuditHead | None) -> Verdict:
        if not self._files and head:
            self._files.append(f"{self._folder}/{AUDIT_LOG}")
        self._report(self._verifier.end(head))
        missing = next((_lacks(note) for note in self._wanted.values()), "")
        on_keeper = tuple(self._on_keeper.notes) if self._on_keeper else ()
        return Verdict(tuple(self._files), self._lines, tuple(self._breaks), missing, on_keeper)

    def _report(self, breaks: Sequence[AuditBreak]) -> None:
        left = MAX_BREAKS - len(self._breaks)
        self._breaks += (FileBreak(self._files[-1], at.line, at.reason) for at in breaks[:left])


def _lacks(note: Note) -> str:
    return f"the line that was its last at {note.time} is missing"


def verify_keeper(settings: Settings, noted: Sequence[Note] = ()) -> Verdict:
    """The log of this keeper, with all that was put away. noted: what nodes' logs, read before, show of it.

    Raises ConfigError for one that cannot be read.
    """
    try:
        with snapshot(settings.log) as seen:
            reading = _Reading(str(settings.log), wanted=noted)
            for log in seen.logs:
                reading.begin(log.name)
                for line in log.lines():
                    reading.take(line.removesuffix(b"\n"), is_whole=line.endswith(b"\n"))
            return reading.end(seen.head)
    except OSError as error:
        raise _unreadable(settings, error) from error


async def verify_nodes(context: Context, nodes: Sequence[Node]) -> list[PerNode[Verdict]]:
    """The logs of the nodes' hives, read over the connection; whether a hive runs does not matter.

    Raises ConfigError where the keeper's own cannot be read.
    """
    noted = notes_on_nodes(_entries(context.settings))

    async def ask(session: NodeSession) -> Verdict:
        node, home = session.node, (await session.probe()).home
        wanted = [note for note in noted.get(node.name, ()) if note.place == place_of(node, home)]
        for _ in range(_LOOKS):
            on_keeper = NotesOnKeeper(context.keeper_id, f"{user()}@{host()}")
            reading = partial(_Reading, f"{home}/log", wanted=wanted, on_keeper=on_keeper)
            verdict, was_put_away = await _verify_on_node(session.connection, f"{home}/log", reading)
            if not was_put_away:
                break
        return verdict

    return await on_each(replace(context, emit=silent), nodes, ask)


async def _verify_on_node(
    connection: Connection, folder: str, reading_from: Callable[[AuditHead | None], _Reading]
) -> tuple[Verdict, bool]:
    """The verdict, and whether the log was put away while it was read. reading_from: makes a reading of a head."""
    mark = secrets.token_hex(16)
    # A newline of our own follows each file: an empty line before the next mark shows that the file ended with its own.
    script = (
        f"cd {quote(folder)} 2>/dev/null || exit 0\n"
        f"head() {{ dd if={AUDIT_HEAD} bs=4096 count=1 2>/dev/null | tr '\\n' ' '; echo; }}\n"
        "head\n"
        f"for log in audit-{_DIGIT * 4}*-{_DIGIT * 8}.log {AUDIT_LOG}; do\n"
        f'  [ -f "$log" ] && {{ printf "{mark}%s\\n" "$log"; cat "$log"; echo; }}\n'
        "done\n"
        f"echo {mark}; head"
    )
    async with connection.stream_script(script) as output:
        seen = unpack_head(await anext(output, b""))
        reading = await _read(output, reading_from(seen), mark.encode())
        head = unpack_head(await anext(output, b""))
    return reading.end(head), bool(seen and head and head.lines < seen.lines)


async def _read(output: AsyncIterator[bytes], reading: _Reading, mark: bytes) -> _Reading:
    """Files, each after a line with the mark and its name, up to the mark alone. Raises NodeError."""
    pending: bytes | None = None
    names: set[str] = set()
    async for line in _bounded(output):
        if line.startswith(mark):
            if pending:
                reading.take(pending, is_whole=False)
            if line == mark:
                break
            name = line.removeprefix(mark).decode(errors="replace")
            if name in names or len(names) >= _MOST_FILES or not (name == AUDIT_LOG or ROTATED.fullmatch(name)):
                raise _nonsense("a file of another name, one file twice, or too many files")
            names.add(name)
            reading.begin(name)
            pending = None
        elif names:
            if pending is not None:
                reading.take(pending)
            pending = line
        else:
            raise _nonsense("lines that belong to no file")
    return reading


async def _bounded(output: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines. Raises NodeError where they are more than MOST_BYTES."""
    left, count = MOST_BYTES, 0
    async for line in output:
        count += 1
        left -= len(line) + 1
        if left < 0:
            raise _nonsense(f"more than {MOST_BYTES // 2**20} MiB")
        if not count % _LINES_AT_ONCE:
            await asyncio.sleep(0)
        yield line


def _nonsense(what: str) -> NodeError:
    message = f"the node's report on its audit log makes no sense: {what}"
    hint = "look at the log on the node; a node that keeps sending such reports is broken or compromised"
    return NodeError(ErrorCode.INVALID_RESPONSE, message, hint=hint)


def last_entries(settings: Settings, count: int, node: str | None) -> list[dict[str, Any]]:
    """The last `count` entries of this keeper, the oldest first; of those about one node, where one is named.

    Lines that are none are left out: `verify` is for those. Raises ConfigError for a log that cannot be read.
    """
    entries = (entry for entry in _entries(settings) if node is None or entry.get("node") == node)
    return list(deque(entries, maxlen=count))


def _entries(settings: Settings) -> Iterator[dict[str, Any]]:
    """All of this keeper, the oldest first, without lines that are none. Raises ConfigError."""
    try:
        with snapshot(settings.log) as seen:
            for log in seen.logs:
                yield from (entry for entry in map(_entry, log.lines()) if entry)
    except OSError as error:
        raise _unreadable(settings, error) from error


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _unreadable(settings: Settings, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot read the audit log in {settings.log}: {error.strerror}", hint="check that the folder belongs to you"
    )
