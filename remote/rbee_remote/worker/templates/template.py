"""A chat template, rendered in Jinja's sandbox as transformers does it.

Only `render` imports this: a template can take any time and memory, so it runs in a process of its own. `prompt` reads
from top to bottom: messages become turns (`shapes`), what somebody wrote is kept text (`shielding`), tools and calls
are written for templates that know nothing of them, the template is rendered (`compiled`), and then it is seen to that
the prompt ends where it should (`reasoning`) and leaves nothing out (`omissions`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rbee_remote.protocol import ChatOptions, ErrorCode, Message, RemoteError
from rbee_remote.worker.templates import jinja, omissions, shapes
from rbee_remote.worker.templates.compiled import Chat, CompiledTemplate, TooLong
from rbee_remote.worker.templates.reasoning import Wish, unclosed
from rbee_remote.worker.templates.rendered import Rendered
from rbee_remote.worker.templates.shapes import Tool, Turn
from rbee_remote.worker.templates.shielding import Shield, unused

#: For models that come without a template. ChatML is the most common format among them.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_DEFAULTS = ChatOptions()
#: Variables that need not be in the template: what they mean is seen to in any case.
_UNDERSTOOD = frozenset({"enable_thinking", "thinking", "reasoning_effort"})


class ChatTemplate:
    """A template, compiled once. source: None for a model without one. bos and eos: their text. special and
    user_defined: as in `LoadedModel`. own: it is the request's and not the model's.

    Raises RemoteError MODEL_INVALID when the source is not Jinja. Here and in `prompt` MemoryError goes through.
    """

    def __init__(
        self,
        source: str | None,
        *,
        bos: str,
        eos: str,
        special: Iterable[str] = (),
        user_defined: frozenset[str] = frozenset(),
        own: bool = False,
    ) -> None:
        self._is_model_without = source is None
        self._foreign = own or source is None
        self._special = frozenset(filter(None, (*special, bos, eos)))
        self.compiled = CompiledTemplate(source or CHATML, bos=bos, eos=eos)
        self._shield = Shield(self._special, user_defined, self.compiled.source)

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        options: ChatOptions = _DEFAULTS,
        *,
        most: int = 2**24,
    ) -> Rendered:
        """`render`, and nothing that was said is left out. Raises RemoteError as that and `omissions.error` do."""
        rendered, chat = self._render(messages, tools, options, most)
        if missing := self._missing(chat, rendered.text, most):
            raise omissions.error(chat.turns, missing[0])
        return rendered

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        options: ChatOptions = _DEFAULTS,
        *,
        most: int = 2**24,
    ) -> Rendered:
        """The prompt of a chat. tools: what may be called, in OpenAI's form.

        most: characters. Raises TooLong; RemoteError: USAGE with the template's own words where it refuses the
        messages; MODEL_INVALID where it breaks on them.
        """
        return self._render(messages, tools, options, most)[0]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], options: ChatOptions, most: int
    ) -> tuple[Rendered, Chat]:
        """With the chat as the template took it."""
        last, continued = messages[-1], options.continue_final
        if continued is None:
            continued = last.role == "assistant" and not last.tool_calls
        wish = Wish.of(options.think, options.reasoning_effort, options.template_kwargs)
        warnings = self._warnings(wish, options)
        chat, seam, tag = self._kept_apart(self._chat(messages, tools, wish, options), continued=continued)
        described = bool(tools) and not self.compiled.takes_tools[0]
        chat, text = self._render_somehow(self._with_calls(chat, described=described), most)
        if continued:
            cut = _cut_at(text, tag)
            if cut is None and options.continue_final is None:
                return self._answered(messages, tools, options, most)
            if cut is None:
                raise _not_continued(len(messages))
            text = cut
        elif options.add_generation_prompt and wish.think is False:
            text = wish.closed(text, self.compiled.traits, self.compiled.read)
        return Rendered(text, seam, tuple(warnings), described, self._stops()), chat

    def _chat(self, messages: Sequence[Message], tools: Sequence[Tool], wish: Wish, options: ChatOptions) -> Chat:
        variables = wish.variables(self.compiled.traits, self.compiled.read) if wish != Wish() else {}
        names, written = self.compiled.takes_tools if tools else ((), False)
        return Chat(
            [self._turn(message) for message in messages],
            [shapes.whole_tool(tool) for tool in tools],
            {**variables, **options.template_kwargs},
            opening=options.add_generation_prompt,
            names=names or ("tools",),
            written=written,
        )

    def _turn(self, message: Message) -> Turn:
        turn = shapes.turn(message, self.compiled.traits)
        if "tool_calls" in turn and self.compiled.takes_objects:
            turn["tool_calls"] = [shapes.with_object(call) for call in turn["tool_calls"]]
        return turn

    def _kept_apart(self, chat: Chat, *, continued: bool) -> tuple[Chat, str, str]:
        """The chat with seams where text could pass for a token, and, where its last turn is continued, a tag behind
        that turn's text; the seam and the tag, "" where none is needed."""
        pair, seam, tag = self.compiled.traits.pair, "", ""
        turns = list(chat.turns)
        opened = unclosed(turns[-1]["content"], pair) if continued and pair else None
        if opened is not None:
            turns[-1] = {**turns[-1], "content": opened}
        given: Any = [turns, list(chat.tools), chat.variables]
        if continued or self._shield.needed(given):
            seam, tag = self._unused(given)
            turns, tools, variables = self._shield.shielded(given, seam)
            chat = replace(chat, tools=tools, variables=variables)
        self.compiled.seams = seam + tag
        if continued:
            turns[-1] = self._tagged(turns[-1], tag, opened=opened is not None)
            chat = replace(chat, opening=False)
        if pair and not self.compiled.traits.field:
            turns = shapes.inlined(turns, pair)
        return replace(chat, turns=turns), seam, tag

    def _unused(self, given: Any) -> tuple[str, str]:
        """Two characters that nobody has written. Raises RemoteError USAGE."""
        letters = unused(self.compiled.source + json.dumps(given, ensure_ascii=False))
        try:
            return next(letters), next(letters)
        except StopIteration:
            message = "the messages hold every character that could keep their text apart from the model's markers"
            raise RemoteError(ErrorCode.USAGE, message, details={"field": "messages"}) from None

    def _tagged(self, turn: Turn, tag: str, *, opened: bool) -> Turn:
        """With transformers' way of finding where the last turn's text ends: the blank shows whether the template
        trims. opened: the text is reasoning, whose block is not closed."""
        text, traits = f"{turn['content']}{tag} ", self.compiled.traits
        if not opened:
            return {**turn, "content": text}
        if traits.field:
            return {**turn, "content": "", "thinking": text, "reasoning_content": text}
        assert traits.pair is not None
        return {**turn, "content": traits.pair[0] + text}

    def _with_calls(self, chat: Chat, *, described: bool) -> Chat:
        """With tools, calls and results in the text, where the template does not write them."""
        turns = list(chat.turns)
        if any("tool_calls" in turn for turn in turns) and (described or not self.compiled.shows_calls):
            turns = [shapes.calls_written(turn) for turn in turns]
        if any(turn["role"] == "tool" for turn in turns) and (described or not self.compiled.shows_results):
            turns = [shapes.results_written(turn) for turn in turns]
        if described:
            return replace(chat, turns=shapes.described(turns, chat.tools), tools=())
        return replace(chat, turns=turns)

    def _render_somehow(self, chat: Chat, most: int) -> tuple[Chat, str]:
        """The chat as the template takes it, and its prompt."""
        try:
            return chat, self.compiled.render(chat, most)
        except (MemoryError, TooLong):
            raise
        except Exception as error:  # a template is a program that came with the model: it can fail in any way
            for turns, tools in shapes.ladder(chat.turns, chat.tools):
                attempt = replace(chat, turns=turns, tools=tools)
                if text := self.compiled.attempt(attempt, most):
                    return attempt, text
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> RemoteError:
        words = "".join(letter for letter in jinja.words(error) if letter not in self.compiled.seams)
        if isinstance(error, jinja.Refused):
            return RemoteError(ErrorCode.USAGE, f"the model's chat template refuses the messages: {words}")
        return RemoteError(ErrorCode.MODEL_INVALID, f"the model's chat template fails: {words}")

    def _answered(
        self, messages: Sequence[Message], tools: Sequence[Tool], options: ChatOptions, most: int
    ) -> tuple[Rendered, Chat]:
        """The prompt for an answer to a last message that cannot be continued."""
        rendered, chat = self._render(messages, tools, replace(options, continue_final=False), most)
        warning = "the model's chat template cannot continue the last message; it is answered"
        return replace(rendered, warnings=(*rendered.warnings, warning)), chat

    def _missing(self, chat: Chat, text: str, most: int) -> list[int]:
        """As `_not_in`, but for a system's message that would be there if nobody had spoken after the user."""
        turns = chat.turns
        missing = self._not_in(text, chat, most)
        asked = omissions.until_asked(turns)
        if not any(turns[index]["role"] == "system" for index in missing) or not 0 < len(asked) < len(turns):
            return missing
        earlier = replace(chat, turns=asked)
        then = self._not_in(self.compiled.attempt(earlier, most), earlier, most)
        return [index for index in missing if turns[index]["role"] != "system" or index >= len(asked) or index in then]

    def _not_in(self, text: str, chat: Chat, most: int) -> list[int]:
        """The messages that are left out of `text`, their prompt."""

        def shown() -> frozenset[int] | None:
            """None where the template fails on the probe."""
            probe = self.compiled.attempt(replace(chat, turns=omissions.with_placeholders(chat.turns)), most)
            return omissions.placeholders_in(probe) if probe else None

        return omissions.find(chat.turns, text, shown)

    def _warnings(self, wish: Wish, options: ChatOptions) -> list[str]:
        found = wish.warnings(self.compiled.traits, self.compiled.read) if wish != Wish() else []
        if self._is_model_without:
            found.append(
                "the model has no chat template; ChatML is used, which it may not have been trained for: give a "
                "template, or a prompt instead of messages"
            )
        for name in options.template_kwargs:
            if name not in _UNDERSTOOD and name not in self.compiled.read:
                found.append(f"the model's chat template does not read the variable {name!r}")
        return found

    def _stops(self) -> tuple[str, ...]:
        """What ends an answer by the template's word alone, where it is not the template that the model came with."""
        marker = self.compiled.end_of_turn if self._foreign else ""
        return (marker,) if marker and marker not in self._special else ()


def _cut_at(text: str, tag: str) -> str | None:
    """The prompt up to the tag; None where the template has left it out."""
    before, found, behind = text.rpartition(tag)
    if not found:
        return None
    return before if behind.startswith(" ") else before.rstrip()


def _not_continued(count: int) -> RemoteError:
    return RemoteError(
        ErrorCode.USAGE,
        f"the model's chat template cannot continue message {count}: it leaves it out",
        hint="do not ask for continue_final_message, so that the message is answered",
        details={"field": "chat.continue_final"},
    )
