from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from rbee_remote.protocol import ChatOptions, ErrorCode, GenerateRequest, Message, RemoteError, Sampling
from rbee_remote.worker.requests import prompt
from rbee_remote.worker.templates.rendered import Rendered
from tests.doubles.engine import BEGIN, INFO, ScriptedEngine

ID = "0123456789abcdef" * 2
USER = (Message("user", "Hi"),)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = Message("assistant", "", tool_calls=(CALL,))


def chat(**options: Any) -> dict[str, Any]:
    return {"prompt": None, "messages": USER, "chat": ChatOptions(**options)}


def request(**values: Any) -> GenerateRequest:
    return GenerateRequest(**{"request_id": ID, "prompt": "Hi", **values})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"prompt": None, "messages": USER},
        {"max_tokens": 1, "stop": ("a",) * 16, "timeout_s": 0.1},
        {"stop": ("x" * 256,)},
        {"prompt": None, "messages": (Message("developer", "d"), *USER, Message("function", "f"))},
        {"prompt": None, "messages": (Message("assistant", "1, 2"),), "chat": ChatOptions(continue_final=True)},
    ],
)
def test_a_good_request_passes(values: dict[str, Any]) -> None:
    checked = request(**values)
    prompt.check(checked)
    assert checked == request(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"request_id": "A" * 32}, "request_id"),
        ({"request_id": ID + "\n"}, "request_id"),
        ({"request_id": "../../etc"}, "request_id"),
        ({"prompt": None}, "one of messages, prompt"),
        ({"messages": USER}, "one of messages, prompt"),
        ({"prompt": None, "messages": (Message("root", "Hi"),)}, r"messages\[0\].role"),
        ({"prompt": None, "messages": (*USER, Message("user", "\ud800"))}, r"messages\[1\].content"),
        ({"prompt": "\udfff"}, "prompt is not valid Unicode"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": ("a",) * 65}, "stop must have at most 64"),
        ({"stop": ("",)}, r"stop\[0\]"),
        ({"stop": ("a", "x" * 257)}, r"stop\[1\]"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
        ({"sampling": Sampling(temperature=9)}, "temperature must be from 0 to 5, got 9"),
        (chat(template_kwargs={"a": 1, "tools": []}), r"chat\.template_kwargs\.tools cannot be set"),
        (chat(template="x" * (2**20 + 1)), r"chat\.template must have at most 1048576 characters"),
        (chat(template="\ud800"), r"chat\.template is not valid Unicode"),
        (chat(continue_final=True), r"chat\.continue_final needs .* the last message is the user's"),
        ({"chat": ChatOptions(continue_final=True)}, r"chat\.continue_final needs .* there are no messages"),
        ({**chat(continue_final=True), "messages": (CALLED,)}, r"chat\.continue_final cannot continue .* tool calls"),
    ],
)
def test_a_bad_request_names_the_field(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RemoteError, match=words) as caught:
        prompt.check(request(**values))
    assert caught.value.code is ErrorCode.USAGE


def prompter(ctx: int = 16, **info: Any) -> prompt.Prompter:
    return prompt.Prompter(ScriptedEngine(str.encode, info=dataclasses.replace(INFO, **info)), ctx)


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(None, 12), (5, 5), (12, 12), (13, 12), (10**30, 12)], ids=lambda value: str(value)[:9]
)
def test_max_tokens_is_what_the_context_still_holds(max_tokens: int | None, expected: int) -> None:
    assert prompter().prepare(request(prompt="abc", max_tokens=max_tokens)).max_tokens == expected


def test_a_prompt_that_fills_the_context_is_refused_with_the_figures() -> None:
    with pytest.raises(RemoteError) as caught:
        prompter(ctx=4).prepare(request(prompt="abc"))
    assert caught.value.code is ErrorCode.USAGE
    assert caught.value.message == "the prompt is too long: 4 tokens, and the context holds 4"
    assert caught.value.details == {"prompt_tokens": 4, "ctx": 4}
    assert "--ctx" in caught.value.hint


def test_an_empty_prompt_to_a_model_without_bos_is_refused() -> None:
    class NoBegin(ScriptedEngine):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            return list(text.encode())

    with pytest.raises(RemoteError, match="empty"):
        prompt.Prompter(NoBegin(str.encode), 16).prepare(request(prompt=""))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"prompt": "<begin>ab"}, "ab"),
        ({"prompt": "ab"}, "ab"),
        ({"prompt": None, "messages": USER, "rendered": "<begin>Hi"}, "Hi"),
    ],
)
def test_the_bos_stands_there_once(values: dict[str, Any], text: str) -> None:
    rendered = values.pop("rendered", None)
    assert prompter().prepare(request(**values), rendered and Rendered(rendered)).tokens == (BEGIN, *text.encode())


def test_an_eos_that_the_tokenizer_adds_is_not_doubled() -> None:
    prepared = prompter(adds_eos=True).prepare(request(prompt="ab<end>"))
    assert prepared.tokens == (BEGIN, *b"ab")


def test_a_rendered_prompt_is_tokenized_in_pieces_and_brings_what_goes_with_it() -> None:
    asked = request(prompt=None, messages=USER)
    rendered = Rendered("<begin>" + "x" * 300 + "<#|end|>", seam="#", warnings=("w",), stops=("s",))
    prepared = prompter(ctx=999).prepare(asked, rendered)
    assert prepared is not None
    assert prepared.tokens == (BEGIN, *b"x" * 300, *b"<|end|>")
    assert prepared.end == rendered.text[-256:]
    assert (prepared.warnings, prepared.stops) == (("w",), ("s",))


def test_a_raw_prompt_has_no_end_to_look_at() -> None:
    prepared = prompter().prepare(request(prompt="ab"))
    assert prepared is not None
    assert (prepared.end, prepared.warnings, prepared.stops) == ("", (), ())
