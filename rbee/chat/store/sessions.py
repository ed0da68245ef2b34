"""Sessions of `rbee chat`, kept and found again, and the lines that were typed.

Rules
- Each write is one transaction; two chats at once wait for each other, a millisecond.
- Who goes on with a session that somebody else has gone on with since keeps his as another one: nothing is overwritten.
- Values reach SQL as parameters, never as text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rbee.base.errors import UsageError
from rbee.chat.asked import Asked
from rbee.chat.conversation import Conversation, Turn
from rbee.chat.interfaces import Listed, Session
from rbee.chat.store.file import open_file, translated
from rbee.chat.words import read
from rbee.registry.file import database, immediate

#: Of an Asked, what belongs to the session; the rest is the command line's.
_KEPT = ("model", "node", "system", "sampling", "stop", "max_tokens", "think", "effort")
_TURN = tuple(field.name for field in fields(Turn))
#: Lines that were typed; older ones are forgotten.
MOST_TYPED = 10_000
_LISTED = (  # the columns of Listed but for the last; the title is the name, else the first question
    "s.id, coalesce(nullif(s.name, ''), (select typed from turns where session = s.id and number = 0), ''), s.model, "
    "(select count(*) from turns where session = s.id), s.changed_at"
)


class Chats:
    """An open chats.db, a `Store`. Every method raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = open_file(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def keep(self, session: Session) -> Session:
        """As of `Store`."""
        with translated(self.path), immediate(self._connection):
            known = self._revision(session.id) if session.id else None
            if known != session.revision or not session.id:
                session = replace(session, id=self._new_id(), revision=0)
            session = replace(session, revision=session.revision + 1)
            self._write(session)
        return session

    def find(self, which: str) -> Session:
        """As of `Store`."""
        with translated(self.path):
            if which:
                rows = self._rows("where id = ? or name = ? order by changed desc", (which, which))
                if not rows and re.fullmatch("[0-9a-f]{1,8}", which):
                    rows = self._rows("where id glob ? order by changed desc", (f"{which}*",))
                    if len(rows) > 1:
                        raise UsageError(f"several sessions begin with {which}", hint="give more of the id")
            else:
                rows = self._rows("order by changed desc limit 1", ())
            if rows:
                return self._session(rows[0])
        if which:
            raise UsageError(f"there is no session {which!r}", hint="`rbee history list` shows them")
        raise UsageError("there is no session yet", hint="`rbee chat` begins one")

    def listed(self, words: str = "", most: int = 20) -> list[Listed]:
        """As of `Store`."""
        with translated(self.path):
            if wanted := _query(words):
                return self._found(wanted, most)
            query = f"select {_LISTED} from sessions s order by s.changed desc limit ?"  # noqa: S608 - columns of ours
            return [Listed(*row) for row in self._connection.execute(query, (most,))]

    def remove(self, ids: Iterable[str]) -> None:
        """Whole ids, and the lines that were typed in them; sessions that are gone are no error."""
        with translated(self.path), immediate(self._connection):
            for id in ids:
                self._forget_typed({turn.typed for turn in self._turns(id)})
                self._connection.execute("delete from turns where session = ?", (id,))
                self._connection.execute("delete from sessions where id = ?", (id,))
            self._forget()
        self._checkpoint()

    def remove_all(self) -> int:
        """Every session, and every line that was typed; how many sessions there were."""
        with translated(self.path), immediate(self._connection):
            (count,) = self._connection.execute("select count(*) from sessions").fetchone()
            for table in ("turns", "sessions", "typed"):
                self._connection.execute(f"delete from {table}")  # noqa: S608 - a name of ours
            self._forget()
        self._checkpoint()
        return int(count)

    def _forget_typed(self, messages: set[str]) -> None:
        lines = self._connection.execute("select id, text from typed").fetchall()
        for id, text in lines:
            if _message(text) in messages:
                self._connection.execute("delete from typed where id = ?", (id,))

    def _forget(self) -> None:
        """What was deleted is gone from the search's index too, which else keeps words until it merges its parts."""
        self._connection.execute("insert into turns_fts(turns_fts) values ('rebuild')")

    def _checkpoint(self) -> None:
        """What was deleted is gone from the journal too, unless another chat reads it at this moment."""
        with translated(self.path):
            self._connection.execute("pragma wal_checkpoint(truncate)")

    def add_typed(self, text: str) -> None:
        """As of `Store`. The same again is one line, the last."""
        text = _storable(text)
        with translated(self.path), immediate(self._connection):
            self._connection.execute("delete from typed where text = ?", (text,))
            self._connection.execute("insert into typed (text) values (?)", (text,))
            self._connection.execute("delete from typed where id <= (select max(id) from typed) - ?", (MOST_TYPED,))

    def typed(self, most: int) -> list[str]:
        """As of `Store`."""
        with translated(self.path):
            return [
                text for (text,) in self._connection.execute("select text from typed order by id desc limit ?", (most,))
            ]

    def _write(self, session: Session) -> None:
        tables, now = database(self._connection), datetime.now(UTC).isoformat(timespec="seconds")
        (last,) = self._connection.execute("select coalesce(max(changed), 0) from sessions").fetchone()
        row = self._connection.execute("select created_at from sessions where id = ?", (session.id,)).fetchone()
        asked = {name: getattr(session.asked, name) for name in _KEPT}
        values = {
            "id": session.id,
            "name": _storable(session.name),
            "model": session.asked.model or "",
            "asked": json.dumps(asked),
            "first": session.conversation.first,
            "revision": session.revision,
            "changed": last + 1,
            "created_at": row[0] if row else now,
            "changed_at": now,
        }
        tables.table("sessions").upsert(values, pk="id")
        known = self._turns(session.id)
        turns = session.conversation.turns
        same = next(
            (n for n, (a, b) in enumerate(zip(known, turns, strict=False)) if a != b), min(len(known), len(turns))
        )
        self._connection.execute("delete from turns where session = ? and number >= ?", (session.id, same))
        tables.table("turns").insert_all(
            {"session": session.id, "number": number, **_turn_values(turn)}
            for number, turn in enumerate(turns)
            if number >= same
        )

    def _found(self, query: str, most: int) -> list[Listed]:
        rows = self._connection.execute(
            f"select {_LISTED}, snippet(turns_fts, -1, '', '', '…', 16) from turns_fts "  # noqa: S608 - columns of ours
            "join turns t on t.id = turns_fts.rowid join sessions s on s.id = t.session "
            "where turns_fts match ? order by rank",
            (query,),
        )
        found: dict[str, Listed] = {}
        for row in rows:
            if row[0] not in found:
                found[row[0]] = Listed(*row)
                if len(found) == most:
                    break
        return list(found.values())

    def _rows(self, where: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        query = f"select id, name, asked, first, revision from sessions {where}"  # noqa: S608 - `where` is ours
        return self._connection.execute(query, values).fetchall()

    def _session(self, row: tuple[Any, ...]) -> Session:
        id, name, asked, first, revision = row
        turns = self._turns(id)
        return Session(id, name, Conversation(turns, min(first, max(0, len(turns) - 1))), _asked(asked), revision)

    def _turns(self, id: str) -> tuple[Turn, ...]:
        query = f"select {', '.join(_TURN)} from turns where session = ? order by number"  # noqa: S608 - columns of ours
        return tuple(Turn(*row) for row in self._connection.execute(query, (id,)))

    def _revision(self, id: str) -> int | None:
        row = self._connection.execute("select revision from sessions where id = ?", (id,)).fetchone()
        return row[0] if row else None

    def _new_id(self) -> str:
        while self._revision(id := secrets.token_hex(4)) is not None:
            pass
        return id


def _turn_values(turn: Turn) -> dict[str, Any]:
    return {name: _storable(value) if isinstance(value, str) else value for name, value in asdict(turn).items()}


def _message(typed: str) -> str | None:
    """What was sent of a line that was typed, None for a /word."""
    try:
        said = read(typed)
    except UsageError:
        return None
    return said if isinstance(said, str) else None


def _storable(text: str) -> str:
    """SQLite takes no halves of characters."""
    return text.encode(errors="replace").decode()


def _asked(text: str) -> Asked:
    values = json.loads(text)
    values["stop"] = tuple(values.get("stop") or ())
    return Asked(**{name: values[name] for name in _KEPT if name in values})


def _query(words: str) -> str:
    """For FTS5: all of the words, or words that begin so, whatever they have in them; NUL would end the query."""
    parts = [word.replace('"', '""') for word in words.replace("\0", " ").split()]
    return " ".join(f'"{part}"*' for part in parts)
