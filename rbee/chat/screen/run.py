"""A chat at a terminal: prompt, answer, prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from rbee.chat.chat import Chat
from rbee.chat.interfaces import Session, Store
from rbee.chat.known import known_of
from rbee.chat.screen.prompt import Prompt
from rbee.chat.screen.terminal import TerminalView
from rbee.context import Context

T = TypeVar("T")

WELCOME = "/help lists what can be typed; Ctrl-D leaves"


async def run_at_terminal(
    context: Context, view: TerminalView, store: Store | None, session: Session, *, color: bool
) -> Chat:
    """Until the user leaves; the chat as it was then."""
    prompt: Prompt | None = None

    def away(ask: Callable[[str], Awaitable[T]]) -> Callable[[str], Awaitable[T]]:
        """A question that is put while a prompt is on the screen, or while keys are kept from it."""

        async def asked(question: str) -> T:
            assert prompt is not None
            view.hush()
            async with prompt.away():
                return await ask(question)

        return asked

    context = replace(
        context,
        ask=away(context.ask) if context.ask else None,
        ask_passphrase=away(context.ask_passphrase) if context.ask_passphrase else None,
    )
    chat = Chat(context, view, store, session)
    prompt = Prompt(
        known_of(context, store),
        typed=store.typed if store else lambda _: [],
        state=lambda: chat.state,
        on_typing=chat.look_again,
        color=color,
    )
    chat.changed = prompt.redraw
    view.notice(WELCOME)
    if session.id:
        view.notice(f"session {session.id}")
        if session.conversation.last:
            view.turn(session.conversation.last)
    background: list[asyncio.Task[None]] = []
    prompt.once_shown(lambda: background.append(asyncio.create_task(_get_ready(chat), name="get ready for answers")))
    async with chat:
        try:
            await _talk(chat, view, prompt)
        finally:
            for task in background:
                task.cancel()
    return chat


async def _get_ready(chat: Chat) -> None:
    """After the prompt has come, which would wait for the imports."""
    await asyncio.to_thread(_import_for_answers)
    chat.look_again()


async def _talk(chat: Chat, view: TerminalView, prompt: Prompt) -> None:
    while not chat.is_over:
        view.gap()
        view.above = prompt.above
        try:
            text = await prompt.read()
        finally:
            view.above = None
        if text is None:
            return
        await chat.take(text)


def _import_for_answers() -> None:
    """Beside the prompt: what is slow to import, and is wanted a moment later."""
    import rbee.render.streamed
    import rbee.setup.attach
    import rbee.transport.ssh  # noqa: F401
