"""What is typed at a terminal, by prompt_toolkit: lines, pastes, history, completion.

Rules
- Enter sends; a paste never does, however many lines it has. Another line is Alt-Enter, or what stands between three
  quotes.
- Ctrl-C clears the line, and Ctrl-D on an empty one leaves.
- The last line of the screen says which model answers, where, and what is going on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.completion import Completion as Shown
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from rbee.chat import multiline
from rbee.chat.screen import modes
from rbee.chat.words import Known, completions

PROMPT, MORE = "> ", ". "
#: Lines that were typed before, which the arrow keys and Ctrl-R go through.
_MOST_TYPED = 2000
_STYLE = Style.from_dict({"bottom-toolbar": "noreverse nobold dim", "prompt": "bold"})


class Prompt:
    """typed: what was typed before, the last first, at most so many. state: the last line. on_typing: called when the
    text changes. input, output: the terminal, None for this process's."""

    def __init__(
        self,
        known: Known,
        *,
        typed: Callable[[int], list[str]],
        state: Callable[[], str],
        on_typing: Callable[[], None],
        color: bool,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._state = state
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_bindings(),
            history=_History(typed),
            completer=_Completer(known),
            complete_while_typing=Condition(self._is_word),
            bottom_toolbar=self._toolbar,
            style=_STYLE,
            color_depth=None if color else ColorDepth.DEPTH_1_BIT,
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".md",
            reserve_space_for_menu=6,
            input=input,
            output=output,
        )
        self._session.default_buffer.on_text_changed += lambda _: on_typing()

    async def read(self) -> str | None:
        """What was typed, None for Ctrl-D."""
        try:
            return await self._session.prompt_async()
        except EOFError:
            return None

    @property
    def is_shown(self) -> bool:
        return self._session.app.is_running

    def once_shown(self, call: Callable[[], object]) -> None:
        """Have `call` called when the prompt is on the screen for the first time."""
        shown = self._session.app.after_render

        def on_shown(_: object) -> None:
            shown.remove_handler(on_shown)
            call()

        shown += on_shown

    def redraw(self) -> None:
        """The state has changed."""
        if self.is_shown:
            self._session.app.invalidate()

    def above(self, text: str) -> None:
        """Write lines above the prompt, escape sequences of ours in them."""
        output = self._session.app.output

        def write() -> None:
            output.write_raw(text.replace("\n", "\r\n"))
            output.flush()

        if self.is_shown:
            run_in_terminal(write)
        else:
            write()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """The terminal is somebody else's inside, who asks a question."""
        if self.is_shown:
            async with in_terminal():
                yield
        else:
            with modes.cooked():
                yield

    def _is_word(self) -> bool:
        return self._session.default_buffer.text.startswith("/")

    def _toolbar(self) -> FormattedText:
        columns = self._session.app.output.get_size().columns
        return FormattedText([("", _shortened(" ".join(self._state().split()), max(1, columns - 1)))])


class _History(History):
    """Kept by the chat, which knows what of it was meant to be."""

    def __init__(self, typed: Callable[[int], list[str]]) -> None:
        super().__init__()
        self._typed = typed

    def load_history_strings(self) -> Iterable[str]:
        return self._typed(_MOST_TYPED)

    def store_string(self, string: str) -> None:
        """Nothing."""


class _Completer(Completer):
    def __init__(self, known: Known) -> None:
        self._known = known

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Shown]:
        del complete_event
        for found in completions(document.text_before_cursor, self._known):
            yield Shown(found.text, -found.replaces, display=found.text.strip(), display_meta=found.about)


def _shortened(state: str, columns: int) -> str:
    """What goes on stands at the end, and the part of a long name that tells it from others likewise."""
    left, shown = columns, len(state)
    while shown and (left := left - get_cwidth(state[shown - 1])) >= 0:
        shown -= 1
    return f"…{state[shown + 1 :]}" if shown else state


def _continuation(width: int, line: int, wrapped: int) -> str:
    """Before each further line; one that was only wrapped stands below its beginning."""
    del line
    return " " * width if wrapped else MORE


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # the word that was chosen stands there
        elif multiline.is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=~is_searching)
    @bindings.add(Keys.SIGINT, filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return bindings
