"""One chat, from what was typed to what is shown of it. `commands` does what /words say.

Rules
- Nothing that a node does ends a chat: what is wrong is told, and the turn can be asked again.
- What came of an answer stays, however it ended.
- What is left out for want of room is told before it is.
- After each turn the session is kept. Where that fails it is told once, and the chat goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from rbee.base.errors import ConfigError, NodeError, RbeeError
from rbee.base.events import Event, Finished, Notice
from rbee.chat import room, words
from rbee.chat.asking import Asking, Heard
from rbee.chat.attachments import Attachment, with_files
from rbee.chat.conversation import Conversation, Turn
from rbee.chat.interfaces import Session, Store, View
from rbee.chat.interrupt import Interrupted, until_interrupted
from rbee.chat.progress import Waiting
from rbee.context import Context
from rbee.infer.request import InferRequest
from rbee.inventory.aliases import ModelAlias
from rbee.models.ref import DEFAULT_MODEL
from rbee_remote.protocol import ErrorCode, Message

#: How often a prompt is made shorter that the worker found too long: what was left out was an estimate.
_SHORTER_TRIES = 3


class Chat:
    """Used as `async with`: at its end what goes on in the background does, too, and connections are closed.

    session: as it was kept last; conversation and asked of it are what holds now. files: for the next message. store:
    None where nothing is kept. failure: the error that the last turn ended with. changed: called when `state` does.
    """

    def __init__(self, context: Context, view: View, store: Store | None, session: Session) -> None:
        self.context, self.view, self.store, self.session = context, view, store, session
        self.files: tuple[Attachment, ...] = ()
        self.is_over = False
        self.failure: RbeeError | None = None
        self.changed: Callable[[], None] = lambda: None
        self.asking = Asking(context)
        self._preparing: asyncio.Task[None] | None = None
        self._given_up: list[asyncio.Task[None]] = []
        self._waiting = Waiting()
        self._state = ""
        self._answers = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave_preparing()
        await self.asking.aclose()

    # --- what holds now -----------------------------------------------------------------------------------------

    @property
    def conversation(self) -> Conversation:
        return self.session.conversation

    @conversation.setter
    def conversation(self, conversation: Conversation) -> None:
        self.session = replace(self.session, conversation=conversation)

    @property
    def alias(self) -> ModelAlias | None:
        return self.context.inventory.alias(self.session.asked.model)

    @property
    def system(self) -> str:
        return self.session.asked.system_message(self.alias)

    @property
    def ctx(self) -> int:
        return self.asking.place.ctx if self.asking.place else 0

    @property
    def use(self) -> room.Use:
        return room.used(self.conversation, self.system, self.ctx, self.session.asked.max_tokens)

    @property
    def state(self) -> str:
        """One line: which model, where, and what is going on or how much of the context is in use."""
        place, asked = self.asking.place, self.session.asked
        model = asked.model or (place.model if place else "") or DEFAULT_MODEL
        where = f" on {place.node if place else asked.node}" if place or asked.node else ""
        use = self.use
        share = f"{use.share:.0%} of {use.ctx:,} tokens" if use.ctx else ""
        return " · ".join(part for part in (f"{model}{where}", self._state or share) if part)

    # --- what is typed ------------------------------------------------------------------------------------------

    async def take(self, text: str) -> None:
        """Something was typed: a message, a word, or nothing."""
        from rbee.chat import commands

        self.failure = None
        text = text.encode(errors="replace").decode()  # a terminal's bytes that are no characters came as halves
        try:
            said = words.read(text)
            if said:
                self._keep_typed(text.strip("\r\n"))
            if isinstance(said, words.Call):
                await commands.do(self, said)
            elif said.strip():
                await self.send(said)
        except RbeeError as error:
            self._failed(error)

    async def send(self, message: str) -> None:
        """A message, with the files that go along, and its answer."""
        question, self.files = with_files(message, self.files), ()
        self.conversation = self.conversation.asked(question, message)
        await self.answer()

    async def answer(self) -> None:
        """The answer to the last question."""
        self._make_room()
        turn = self.conversation.last
        assert turn is not None
        self.view.begin()
        heard, finished, error = Heard(self.view), None, None
        self._answers = True
        try:
            finished = await until_interrupted(self._answered(heard))
        except Interrupted:
            self.failure = RbeeError(ErrorCode.REQUEST_CANCELED, "canceled")
        except RbeeError as why:
            error = why
        finally:
            self._answers = False
            self.view.end()
            self.conversation = self.conversation.answered(_answered(turn, heard, finished))
            self.keep()
        if error:
            self._failed(error)
        self._tell_how_it_ended(finished, heard, error)
        self.changed()

    async def _answered(self, heard: Heard) -> Finished:
        if self._preparing and not self._preparing.done():
            await asyncio.wait({self._preparing})
        for left in reversed(range(_SHORTER_TRIES)):
            try:
                return await self.asking.answer(self._request(self.conversation.messages(self.system)), heard)
            except NodeError as error:
                if not left or not self._shorter(error):
                    raise
        raise AssertionError("the last try returns or raises")

    def _shorter(self, error: NodeError) -> bool:
        """Whether the prompt was found too long, and is shorter now."""
        tokens, ctx = error.details.get("prompt_tokens"), error.details.get("ctx")
        if error.code is not ErrorCode.USAGE or not isinstance(tokens, int) or not isinstance(ctx, int):
            return False
        before = self.conversation
        self.conversation = room.with_half_free(before, self.system, ctx, counted=tokens)
        self._tell_left_out(before)
        return self.conversation.first > before.first

    def _request(self, messages: tuple[Message, ...]) -> InferRequest:
        return self.session.asked.request(messages, self.alias)

    # --- what is told -------------------------------------------------------------------------------------------

    def _failed(self, error: RbeeError) -> None:
        self.failure = error
        self.view.error(error)

    def _make_room(self) -> None:
        before = self.conversation
        self.conversation = room.fitted(before, self.system, self.ctx, self.session.asked.max_tokens)
        self._tell_left_out(before)

    def _tell_left_out(self, before: Conversation) -> None:
        gone = before.turns[before.first : self.conversation.first]
        if gone:
            self.view.notice(f"the context is full; left out from now on: {_quoted(room.names(gone))}")

    def _tell_how_it_ended(self, finished: Finished | None, heard: Heard, error: RbeeError | None) -> None:
        if finished is None:
            kept = "what came of the answer is kept; " if not heard.is_empty else ""
            self.view.notice(f"{'' if error else 'stopped; '}{kept}/retry asks again")
            return
        if finished.finish_reason == "length":
            most = self.session.asked.max_tokens
            why = "max_tokens allows no more" if most == finished.usage.completion_tokens else "the context is full"
            self.view.notice(f"the answer is cut off: {why}")
        use = self.use
        if use.leaves_out:
            when = "the next message leaves out" if use.must_leave_out else "when it is full, left out are"
            tokens = f"{use.tokens:,} of {use.ctx:,} tokens"
            self.view.notice(f"the context is {use.share:.0%} full ({tokens}); {when}: {_quoted(use.leaves_out)}")

    # --- what is kept -------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """The session, where sessions are kept."""
        if self.store is None or not (self.conversation.turns or self.session.id):
            return
        try:
            kept = self.store.keep(self.session)
        except ConfigError as error:
            self._keep_no_more(error)
            return
        if self.session.id and kept.id != self.session.id:
            self.view.notice(f"session {self.session.id} was gone on with elsewhere; this one is kept as {kept.id}")
        self.session = kept

    def _keep_typed(self, text: str) -> None:
        if self.store is None:
            return
        try:
            self.store.add_typed(text)
        except ConfigError as error:
            self._keep_no_more(error)

    def _keep_no_more(self, error: ConfigError) -> None:
        self.store = None
        self.view.notice(f"from now on nothing is kept of this chat: {error.message}")

    # --- in the background --------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Get a worker ready, as the chat has it now, while the user types."""
        if self._preparing and not self._preparing.done():
            self._preparing.cancel()
            self._given_up.append(self._preparing)
        self._state = "connecting"
        self._preparing = asyncio.create_task(self._prepare(), name="get a worker ready for the chat")
        self.changed()

    def look_again(self) -> None:
        """Get a worker ready that nothing was heard of for a while, or ever: the user is there, or begins to type."""
        if self.asking.is_stale and (self._preparing is None or self._preparing.done()) and not self._answers:
            self.prepare()

    async def _prepare(self) -> None:
        try:
            await self.asking.get_ready(self._request((Message("user", "-"),)), self._in_background)
            self._state = ""
        except RbeeError as error:
            self._state = "not ready"
            if not self._answers:  # else the answer meets the same, and tells
                self.view.notice(f"{error.message}; the next message tries again")
        finally:
            self.changed()

    def _in_background(self, event: Event) -> None:
        if self._answers:
            self.view(event)
        elif isinstance(event, Notice):
            self.view.notice(event.text)
        if words := self._waiting.words(event):
            self._state = words
            self.changed()

    async def _leave_preparing(self) -> None:
        tasks = [*self._given_up, *([self._preparing] if self._preparing else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _answered(turn: Turn, heard: Heard, finished: Finished | None) -> Turn:
    return replace(
        turn,
        answer=heard.text,
        reasoning=heard.reasoning,
        finish=finished.finish_reason if finished else "",
        prompt_tokens=finished.usage.prompt_tokens if finished else 0,
        answer_tokens=finished.usage.completion_tokens if finished else 0,
    )


def _quoted(names: tuple[str, ...]) -> str:
    """The first and the last ones of many."""
    shown = [f"“{name}”" for name in names]
    return ", ".join(shown if len(shown) < 4 else [*shown[:2], f"{len(shown) - 3} more", shown[-1]])
