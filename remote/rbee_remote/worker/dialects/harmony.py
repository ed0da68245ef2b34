"""gpt-oss: an answer is one or several messages, each with a header that says where it goes.

    <|channel|>analysis<|message|>reasoning<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>text<|return|>        (without the lines' ends)

The prompt ends with `<|start|>assistant`. The recipient may stand before the channel.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rbee_remote.worker.dialects.interface import Dialect, Reader, Tools, Vocabulary
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Ended, Reading, Script, ScriptReader

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_END, _RETURN, _CALL = "<|end|>", "<|return|>", "<|call|>"
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_KIND = re.compile(r"<\|channel\|>\s*(\w+)")
#: What may be written of a header that was cut off.
_HEADER = re.compile(r"[\w\s.=:/-]*(?:<\|(?:start|channel|constrain)\|>[\w\s.=:/-]*)*")


class Header(NamedTuple):
    """Of a message. recipient: "" for the user."""

    channel: str
    recipient: str


class Harmony(Dialect):
    name = "harmony"
    markers = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, _END, _RETURN, _CALL)
    reasoning_end = _END

    def recognises(self, template: str) -> bool:
        return f"{_CHANNEL}analysis" in template and _MESSAGE in template

    def reader(self, tools: Tools | None, vocabulary: Vocabulary, prompt: str) -> Reader:
        reading = Reading(self.markers, tools, vocabulary)
        return ScriptReader(reading, _script(reading, prompt))

    def grammar(self, tools: Tools | None, content: str | None, vocabulary: Vocabulary, prompt: str) -> str:
        lark = Lark({marker: vocabulary[marker] for marker in self.markers if marker in vocabulary})
        start, channel, message, constrain = map(lark.mark, (_START, _CHANNEL, _MESSAGE, _CONSTRAIN))
        begun, in_body = _begun(prompt)
        header = _header(begun)
        following = f'{start} "assistant" '
        text = lark.rule(content, "content") if content else lark.free()
        if in_body and header.channel == "final":
            return lark.text(text)
        analysis = f'{channel} "analysis" {message} {lark.until(_END)} {following}'
        thought = f"({analysis})* "
        if in_body:
            thought = f"{lark.until(_END)} {following}{thought}"
        answers = [] if tools and tools.required else [f'{channel} "final" {message} {text}']
        if tools and tools.parameters:
            bodies = [f'{quoted(name + " ")} {constrain} "json" {message} {lark.arguments(schema)}'
                      for name, schema in tools.parameters.items()]  # fmt: skip
            call = f'{channel} "commentary to=functions." {lark.any_of(bodies)}'
            said = f'{channel} "commentary" {message} {lark.until(_END)} {following}'
            preamble = "" if tools.required or content else f"({said})? "
            answers.append(f"{preamble}{call}")
        return lark.text(f"{thought}{lark.any_of(answers)}")


def _begun(prompt: str) -> tuple[str, bool]:
    """What the prompt has written of the message that the answer continues: its header, and whether that is whole."""
    message = prompt.rpartition(_START)[2] if _START in prompt else ""
    if _END in message or _RETURN in message:
        return "", False
    header, whole, _ = message.partition(_MESSAGE)
    return header, bool(whole)


def _header(text: str) -> Header:
    kind, recipient = _KIND.search(text), _RECIPIENT.search(text)
    return Header(kind[1] if kind else "", recipient[1].removeprefix("functions.") if recipient else "")


def _script(reading: Reading, prompt: str) -> Script[None]:
    begun, in_body = _begun(prompt)
    while True:
        if not in_body:
            begun = yield from _read_header(reading, begun)
        begun, in_body = (yield from _read_body(reading, _header(begun))), False


def _read_header(reading: Reading, begun: str) -> Script[str]:
    """Up to the message. Text where a header should be is content. begun: what has been written of it."""
    starts = [reading.form(marker) for marker in (_CHANNEL, _START, _MESSAGE)]
    stray = [reading.form(marker) for marker in (_END, _RETURN, _CALL)]
    if _CHANNEL not in begun and _START not in begun:
        marker = yield from reading.next_is(*starts)
        if not marker and not (yield from reading.ahead("to=")):
            while marker not in starts:
                marker = yield from reading.until(reading.content.say, *starts, *stray)
        begun += reading.text(marker)
        if begun.endswith(_MESSAGE):
            return begun
    parts: list[str] = []
    try:
        yield from reading.until(parts.append, reading.form(_MESSAGE))
    except Ended:
        _cut_off(reading, begun + "".join(parts))
        raise
    return begun + "".join(parts)


def _cut_off(reading: Reading, text: str) -> None:
    """A header without a message: a call, if it says so already, else nothing, or what was never a header."""
    recipient = _header(text).recipient
    if reading.known(recipient):
        reading.begin(recipient)
    elif not _HEADER.fullmatch(text):
        reading.content.say(text)


def _read_body(reading: Reading, header: Header) -> Script[str]:
    """The message. Gives the marker that begins the next header, if that is what ended it."""
    flow = reading.content
    if not reading.known(header.recipient) or not (yield from reading.attempt(reading.json_object(header.recipient))):
        reading.in_reasoning = header.channel == "analysis"
        flow = reading.reasoning if reading.in_reasoning else reading.content
    ends = (_END, _RETURN, _CALL, _START, _CHANNEL)
    stop = yield from reading.until(flow.say, *map(reading.form, ends))
    reading.in_reasoning = False
    flow.pause("\n")
    marker = reading.text(stop)
    return marker if marker in (_START, _CHANNEL) else ""
