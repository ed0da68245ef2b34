"""A chat on a terminal: answers as they come, notices, tables; what was written stays in the terminal's own history.

Rules
- While a prompt is on the screen, everything else goes above it.
- What comes from a node, a model or a file is neutralised.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rbee.base.errors import RbeeError, UsageError
from rbee.base.events import Event, Notice, PhaseDone, Reasoning, Retry, Token, ToolCall
from rbee.chat.conversation import Turn
from rbee.chat.progress import Waiting
from rbee.chat.screen import clipboard
from rbee.chat.screen.editor import edited
from rbee.render import Output
from rbee.render import text as render_text
from rbee.render.fitting import fitted

if TYPE_CHECKING:
    from rbee.render.streamed import StreamedAnswer

#: What a terminal has that does not say.
_COLUMNS, _ROWS = 80, 24


class TerminalView:
    """A `View`. above: writes above a prompt that is on the screen; None while there is none."""

    def __init__(self, output: Output, *, color: bool, verbose: bool = False) -> None:
        self.above: Callable[[str], None] | None = None
        self.is_folded = False
        self._output, self._color, self._verbose = output, color, verbose
        self._answer: _Answer | None = None

    # --- an answer --------------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        if self._answer:
            self._answer.take(event)

    def begin(self) -> None:
        self._answer = _Answer(self)

    def end(self) -> None:
        if self._answer:
            self._answer.end()
            self._answer = None

    def fold(self, *, is_folded: bool) -> None:
        self.is_folded = is_folded

    # --- everything else ------------------------------------------------------------------------------------------

    def notice(self, text: str) -> None:
        self._say([self.dim(line) for line in self._wrapped(text)])

    def error(self, error: RbeeError) -> None:
        width = self.size()[0] - 1
        told = [textwrap.wrap(each, width, break_on_hyphens=False) for each in render_text.error_lines(error)]
        first, *rest = [line for wrapped in told for line in wrapped]
        lines = [f"{self._style('error:', '1;31')}{first.removeprefix('error:')}"]
        lines += [f"{self._style('hint:', '1;36')}{line[5:]}" if line.startswith("hint:") else line for line in rest]
        self._say(lines)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = fitted(header, rows, self.size()[0] - 1)
        self._say([self._style(line, "1") if header and number == 0 else line for number, line in enumerate(lines)])

    def text(self, text: str) -> None:
        self._say(render_text.neutralise(text).split("\n"))

    def turn(self, turn: Turn) -> None:
        """What was typed, the reasoning, and the answer."""
        if turn.typed:
            self.text(_quoted(turn.typed))
        shown = self.make_answer()
        if turn.reasoning and not self.is_folded:
            shown.reasoning(turn.reasoning, 0)
        shown.text(turn.answer)
        shown.end()

    def copy(self, text: str) -> str:
        sequence = clipboard.osc52(text)
        taken = clipboard.by_program(text)
        if sequence:
            self._output.write_raw(sequence)
        if not sequence and not taken:
            raise UsageError("this is too long for the terminal's clipboard, and there is no program for it")
        return taken or "by the terminal"

    async def edit(self, text: str) -> str:
        changed = await edited(text)
        if changed != text:
            self.text(_quoted(changed.strip("\r\n")))
        return changed

    def hush(self) -> None:
        """Nothing moves until something comes: a question is put."""
        if self._answer:
            self._answer.hush()

    def gap(self) -> None:
        """A blank line, before the next prompt."""
        self._output.write_raw("\r\n")

    # --- parts ------------------------------------------------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            size = os.get_terminal_size(self._output.stream.fileno())
        except (OSError, ValueError):
            return (_COLUMNS, _ROWS)
        return (size.columns or _COLUMNS, size.lines or _ROWS)

    def dim(self, text: str) -> str:
        return self._style(text, "2") if text else ""

    def make_answer(self) -> StreamedAnswer:
        from rbee.render.streamed import StreamedAnswer

        return StreamedAnswer(self._output, self.size, color=self._color, folded=self.is_folded)

    @property
    def is_verbose(self) -> bool:
        return self._verbose

    def _wrapped(self, text: str) -> list[str]:
        return fitted((), [(text,)], self.size()[0] - 1)

    def _style(self, text: str, codes: str) -> str:
        """Dim and bold are no colours."""
        return f"\x1b[{codes}m{text}\x1b[0m" if self._color or codes in ("1", "2") else text

    def _say(self, lines: Sequence[str]) -> None:
        if self._answer:
            self._answer.line("\n".join(lines))
        elif self.above:
            self.above("".join(f"{line}\n" for line in lines))
        else:
            self._output.write_raw("".join(f"{line}\r\n" for line in lines))


def _quoted(text: str) -> str:
    """What was typed, as at the prompt."""
    return "\n".join(f"> {line}" for line in text.split("\n"))


class _Answer:
    """One answer, from what is waited for to its last word."""

    def __init__(self, view: TerminalView) -> None:
        self._view = view
        self._shown = view.make_answer()
        self._waiting = Waiting()
        self._shown.status("…")

    def take(self, event: Event) -> None:
        match event:
            case Token(text=text):
                self._shown.text(text)
            case Reasoning(text=text, tokens=tokens):
                self._shown.reasoning(text, tokens)
            case PhaseDone() if self._view.is_verbose:
                self._shown.line(self._view.dim(render_text.phase_done(event)))
            case Notice(text=text):
                self._view.notice(text)
            case Retry():
                self._view.notice(render_text.retry(event))
            case ToolCall(name=name):
                self._view.notice(f"the model calls a function {name}, and there are none in a chat")
            case _:
                if words := self._waiting.words(event):
                    self._shown.status(words)

    def line(self, text: str) -> None:
        self._shown.line(text)

    def hush(self) -> None:
        self._shown.status("")

    def end(self) -> None:
        self._shown.end()
