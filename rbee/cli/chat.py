"""`rbee chat`: options in, a conversation until the user leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import ConfigError, UsageError
from rbee.cli.aliased import alias_of
from rbee.cli.collected import takes
from rbee.cli.load_options import collect_load_options
from rbee.cli.options import (
    EffortOption,
    KeepAliveOption,
    ModelOption,
    NodeOption,
    SystemOption,
    ThinkOption,
    check_text,
    duration,
)
from rbee.cli.sampling_options import read_sampling, read_stop
from rbee.cli.shell import Shell, command
from rbee_remote.protocol import LoadOptions

if TYPE_CHECKING:
    from rbee.chat.asked import Asked
    from rbee.chat.interfaces import Session
    from rbee.chat.store.sessions import Chats
    from rbee.context import Context
    from rbee.registry import Registry


def register(app: typer.Typer) -> None:
    command(app, "chat", example="rbee chat --node gpu1 --model smollm2:135m")(chat)


@takes(sampling=read_sampling, stop=read_stop, load=collect_load_options())
def chat(
    shell: Shell,
    *,
    session: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="With --continue: the session, by its id or name. [default: the last one]",
            show_default=False,
        ),
    ] = None,
    node: NodeOption = None,
    model: ModelOption = None,
    go_on: Annotated[bool, typer.Option("--continue", "-c", help="Go on with a session that was kept.")] = False,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep nothing of this chat, and show nothing of others.")
    ] = False,
    system: SystemOption = None,
    think: ThinkOption = None,
    reasoning_effort: EffortOption = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="At most this many tokens an answer.")
    ] = None,
    sampling: dict[str, Any],
    stop: tuple[str, ...],
    load: LoadOptions,
    keep_alive: KeepAliveOption = None,
) -> None:
    """Talk with a model; /help lists what can be typed. Input that is no terminal is taken line by line."""
    from rbee.chat.asked import Asked

    if go_on and no_history:
        raise UsageError("--continue and --no-history were given", hint="leave out one of them")
    if session and not go_on:
        raise UsageError(f"{session!r} is taken with --continue alone", hint='one answer: rbee infer "…"')
    if think is False and reasoning_effort:
        raise UsageError("--no-think and --reasoning-effort were given", hint="leave out one of them")
    for option, text in (("--system", system), ("--reasoning-effort", reasoning_effort)):
        if text is not None:
            check_text(option, text)
    asked = Asked(
        model=model,
        node=node,
        system=system,
        sampling=sampling,
        stop=stop,
        max_tokens=max_tokens,
        think=think,
        effort=reasoning_effort or "",
        load=load,
        keep_alive_s=duration(keep_alive, "--keep-alive"),
    )
    _check(shell, asked)
    store = None if no_history else _store(shell)
    try:
        _run(shell, store, _session(store, session if go_on else None, asked, is_continued=go_on))
    finally:
        if store:
            store.close()


def _check(shell: Shell, asked: Asked) -> None:
    """Raises UsageError and NodeError for a model or node that there is not, before the prompt is shown."""
    alias_of(asked.model, shell.inventory)
    if asked.node:
        shell.inventory.select(asked.node)


def _store(shell: Shell) -> Chats | None:
    """Where sessions are kept. Raises ConfigError where that fails before anything was said."""
    from rbee.chat.store.file import NAME
    from rbee.chat.store.sessions import Chats

    try:
        return Chats(shell.settings.home / NAME)
    except ConfigError as error:
        error.hint = error.hint or "--no-history chats without"
        raise


def _session(store: Chats | None, which: str | None, asked: Asked, *, is_continued: bool) -> Session:
    """A new one, or one that was kept, with what the command line says over what it had."""
    from rbee.chat.interfaces import Session

    if not is_continued or store is None:
        return Session(asked=asked)
    found = store.find(which or "")
    said = {
        name: value
        for name in ("model", "node", "system", "max_tokens", "think")
        if (value := getattr(asked, name)) is not None
    }
    said |= {name: value for name in ("stop", "effort") if (value := getattr(asked, name))}
    before = replace(found.asked, load=asked.load, keep_alive_s=asked.keep_alive_s)
    return replace(found, asked=replace(before, **said, sampling={**before.sampling, **asked.sampling}))


def _run(shell: Shell, store: Chats | None, session: Session) -> None:
    somebody_types = sys.stdin is not None and sys.stdin.isatty()
    is_dumb = os.environ.get("TERM", "dumb") in ("dumb", "")
    if somebody_types and sys.stdout.isatty() and not is_dumb and not shell.options.json:
        node = _at_terminal(shell, store, session)
    elif sys.stdin is None:
        raise UsageError("standard input is closed", hint='one answer: rbee infer "…"')
    else:
        node = _plain(shell, store, session, is_terminal=somebody_types)
    if node:
        shell.hold_connection(node)


def telling_once(
    context: Context, open_registry: Callable[[Callable[[str], None]], Registry], tell: Callable[[str], None]
) -> Context:
    """What is wrong with the registry stands among the chat's notices, and once: each turn opens it anew."""
    told: set[str] = set()

    def once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return replace(context, open_registry=lambda: open_registry(once))


def _at_terminal(shell: Shell, store: Chats | None, session: Session) -> str:
    """The node that answered last, "" for none."""
    from rbee.chat.screen import modes

    color = not (shell.options.no_color or os.environ.get("NO_COLOR"))
    with modes.quiet():  # from here on, what is typed is the prompt's: what follows takes a moment to import
        from rbee.chat.screen.run import run_at_terminal
        from rbee.chat.screen.terminal import TerminalView
        from rbee.render import Output

        view = TerminalView(Output(sys.stdout), color=color, verbose=bool(shell.options.verbose))
        context = telling_once(shell.context, shell.open_registry, view.notice)
        chat = shell.run(run_at_terminal(context, view, store, session, color=color))
    return chat.asking.place.node if chat.asking.place else ""


def _plain(shell: Shell, store: Chats | None, session: Session, *, is_terminal: bool) -> str:
    from rbee.chat.chat import Chat
    from rbee.chat.screen.plain import PlainView, run_plain

    options = shell.options
    renderer = shell.use_renderer()
    view = PlainView(renderer, is_json=options.json, is_verbose=bool(options.verbose), is_terminal=is_terminal)
    chat = Chat(telling_once(shell.context, shell.open_registry, view.notice), view, store, session)
    status = shell.run(run_plain(chat, is_terminal=is_terminal))
    if status:
        raise typer.Exit(status)
    return chat.asking.place.node if chat.asking.place else ""
