"""Command lines that are run here for clients of the link, as they would be run there."""

from __future__ import annotations

import contextvars
from pathlib import Path

from rbee.base.errors import ElsewhereError
from rbee.cli import main
from rbee.cli.inputs import INPUTS, Inputs
from rbee.cli.shell import State
from rbee.link.session import Session


def run_for_client(words: list[str], session: Session | None) -> int:
    """A `link.server.Commands`. Without a session it reads in what commands need, so that the first is fast as well."""
    if session is None:
        return _get_ready()
    return contextvars.copy_context().run(_run, words, session)


def _run(words: list[str], session: Session) -> int:
    INPUTS.set(Inputs(standard_input=_ClientInput(session), file=_not_here))
    return main.run(words, State(session=session))


class _ClientInput:
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, *, is_named: bool) -> bytes | None:
        content = self._session.standard_input()
        if content is None and is_named:
            raise ElsewhereError("it is read from the terminal")
        return content


def _not_here(path: Path) -> bytes:
    """A path may be one of the client's own descriptors (`--file <(…)`), and reading may last."""
    raise ElsewhereError(f"{path} is read by the client")


def _get_ready() -> int:
    from rbee.fleet import nodes, workers
    from rbee.infer import infer
    from rbee.render import json_lines, plain, terminal

    del nodes, workers, infer, json_lines, plain, terminal
    main.get_ready(("infer", "workers", "nodes"))
    return 0
