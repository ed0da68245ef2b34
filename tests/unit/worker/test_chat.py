from __future__ import annotations

import dataclasses
import datetime

import pytest

from rbee_remote.protocol import ErrorCode, Message, RemoteError
from rbee_remote.worker.chat import ChatTemplate
from rbee_remote.worker.testing import INFO

CHAT = (Message("system", "Be brief."), Message("user", "Hi"))


def render(template: str | None, messages: tuple[Message, ...] = CHAT) -> str:
    return ChatTemplate(dataclasses.replace(INFO, chat_template=template)).render(messages)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['role'] }}{{ eos_token }}", "<begin>system<end>"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "Be brief."),
        ("{{ {'k': '<é>'} | tojson }}", '{"k": "<é>"}'),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Hi"),
        ("{{ tools is defined }}", "False"),
    ],
)
def test_templates_render_as_in_transformers(template: str, expected: str) -> None:
    assert render(template) == expected


def test_a_template_knows_the_date() -> None:
    this_year = str(datetime.datetime.now().astimezone().year)
    assert render("{{ strftime_now('%Y') }}") == this_year


def test_a_model_without_a_template_gets_chatml() -> None:
    assert render(None) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "code", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", ErrorCode.USAGE, "roles must alternate"),
        ("{% for %}", ErrorCode.MODEL_INVALID, "cannot be read"),
        ("{{ messages | nothing }}", ErrorCode.MODEL_INVALID, "cannot be read"),
        ("{{ nobody.knows.this }}", ErrorCode.MODEL_INVALID, "fails"),
        ("{{ 1 / 0 }}", ErrorCode.MODEL_INVALID, "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", ErrorCode.MODEL_INVALID, "unsafe"),
        ("{% set _ = messages.append(1) %}", ErrorCode.MODEL_INVALID, "fails"),
        ("{% for i in range(10**9) %}{% endfor %}", ErrorCode.MODEL_INVALID, "fails"),
    ],
)
def test_a_bad_template_is_a_clear_error(template: str, code: ErrorCode, words: str) -> None:
    with pytest.raises(RemoteError, match=words) as caught:
        render(template)
    assert caught.value.code is code
    assert "--raw" in caught.value.hint
