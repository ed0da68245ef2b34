"""`rbee history`: the sessions of `rbee chat`, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from rbee.base.errors import UsageError
from rbee.cli.options import check_text
from rbee.cli.shell import Shell, command, group
from rbee.render import Table

if TYPE_CHECKING:
    from rbee.chat.interfaces import Listed, Session
    from rbee.chat.store.sessions import Chats

LinesOption = Annotated[int, typer.Option("--lines", "-n", min=1, metavar="N", help="How many to show.")]
SessionArgument = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help="The session, by its id or name. [default: the last one]", show_default=False),
]


def register(app: typer.Typer) -> None:
    history = group(app, "history", "Sessions of `rbee chat`: find, show and remove them.")
    command(history, "list", example="rbee history list --lines 50")(list_)
    command(history, "search", example="rbee history search rayleigh scattering")(search)
    command(history, "show", example="rbee history show 3f2a9c1e")(show)
    command(history, "remove", example="rbee history remove 3f2a9c1e")(remove)


def list_(shell: Shell, lines: LinesOption = 20) -> None:
    """List the sessions, the last first."""
    with _chats(shell) as chats:
        shell.renderer.table(_table(chats.listed(most=lines)))


def search(
    shell: Shell,
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="All of them, or their beginnings.")],
    lines: LinesOption = 20,
) -> None:
    """Find sessions with these words in a question or an answer, the best first."""
    wanted = " ".join(words)
    check_text("the words", wanted)
    if not wanted.strip():
        raise UsageError("there are no words to look for", hint="rbee history search rayleigh")
    with _chats(shell) as chats:
        shell.renderer.table(_table(chats.listed(wanted, most=lines)))


def show(shell: Shell, session: SessionArgument = None) -> None:
    """Print a session as Markdown; with --json as messages."""
    with _chats(shell) as chats:
        found = chats.find(session or "")
    if shell.options.json:
        messages = [asdict(message) for message in found.conversation.messages(found.asked.system or "")]
        shell.renderer.record({"id": found.id, "name": found.name, "model": found.asked.model, "messages": messages})
    else:
        shell.renderer.write(as_markdown(found))


def remove(
    shell: Shell,
    sessions: Annotated[
        list[str] | None, typer.Argument(metavar="[ID…]", help="By id or name.", show_default=False)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All sessions, and all lines that were typed, for good.")
    ] = False,
) -> None:
    """Remove sessions, and what was typed in them."""
    if bool(sessions) == everything:
        raise UsageError("name sessions, or give --all", hint="`rbee history list` shows them")
    with _chats(shell) as chats:
        if everything:
            count = chats.remove_all()
        else:
            found = [chats.find(each).id for each in sessions or ()]
            chats.remove(found)
            count = len(found)
    shell.renderer.done(f"removed {count} session{'' if count == 1 else 's'}", {"removed": count})


@contextmanager
def _chats(shell: Shell) -> Iterator[Chats]:
    from rbee.chat.store.file import NAME
    from rbee.chat.store.sessions import Chats

    with Chats(shell.settings.home / NAME) as chats:
        yield chats


def _table(found: Sequence[Listed]) -> Table:
    from rbee.chat.commands import SESSIONS, session_row

    return Table(SESSIONS, [session_row(each) for each in found], [asdict(each) for each in found])


def as_markdown(session: Session) -> str:
    """Questions as quotes, answers as they came."""
    parts = [f"# {session.name}"] if session.name else []
    for turn in session.conversation.turns:
        parts.append("\n".join(f"> {line}".rstrip() for line in turn.question.split("\n")))
        if turn.answer:
            parts.append(turn.answer.strip("\n"))
    return "\n\n".join(parts) + "\n"
