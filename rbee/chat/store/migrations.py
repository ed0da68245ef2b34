"""The steps that bring chats.db from each version to the next, kept by sqlite-utils in `_sqlite_migrations`.

Rules
- A step that was released is never edited; a change is another step at the end, and `file.VERSION` grows with it.
"""

from __future__ import annotations

from sqlite_utils import Migrations
from sqlite_utils.db import Database

MIGRATIONS = Migrations("rbee-chats")


@MIGRATIONS()
def m001_sessions_turns_typed(db: Database) -> None:
    """sessions: changed orders them, whatever the clock does. turns: searched by their words. typed: lines."""
    db.table("sessions").create(
        {
            "id": str,
            "name": str,
            "model": str,
            "asked": str,
            "first": int,
            "revision": int,
            "changed": int,
            "created_at": str,
            "changed_at": str,
        },
        pk="id",
    )
    db.table("sessions").create_index(["changed"])
    db.table("turns").create(
        {
            "id": int,
            "session": str,
            "number": int,
            "question": str,
            "typed": str,
            "answer": str,
            "reasoning": str,
            "finish": str,
            "prompt_tokens": int,
            "answer_tokens": int,
        },
        pk="id",
    )
    db.table("turns").create_index(["session", "number"], unique=True)
    db.table("turns").enable_fts(["question", "answer"], create_triggers=True)
    db.table("typed").create({"id": int, "text": str}, pk="id")
