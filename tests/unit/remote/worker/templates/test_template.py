from __future__ import annotations

import dataclasses
import datetime
import json

import pytest

from rbee_remote.protocol import ErrorCode, Message, RemoteError
from rbee_remote.worker.templates.template import ChatTemplate

CHAT = (Message("system", "Be brief."), Message("user", "Hi"))


def render(template: str | None, messages: tuple[Message, ...] = CHAT) -> str:
    return chat_template(template).render(messages).text


def chat_template(template: str | None) -> ChatTemplate:
    return ChatTemplate(template, bos="<begin>", eos="<end>")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['role'] }}{{ eos_token }}", "<begin>system<end>"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "Be brief."),
        ("{{ {'k': '<é>'} | tojson }}", '{"k": "<é>"}'),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Hi"),
        ("{{ tools }} {{ documents }}", "None None"),
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
    assert caught.value.hint == ""  # it goes to clients that have no keyboard


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"}},
}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
CALLED = (
    Message("user", "Weather?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "sunny", tool_call_id="a1b2c3d4e", name="weather"),
)
#: As templates of the families write a call, and what one of them expects of arguments.
CALLS = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ ARGUMENTS }}{% endfor %}{% endfor %}"


def test_tools_are_there_when_there_are_some() -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}"
    chat = chat_template(template)
    assert json.loads(chat.render(CHAT, [WEATHER]).text) == [WEATHER]
    assert chat.render(CHAT).text == ""


@pytest.mark.parametrize(
    "arguments",
    [
        "c.function.arguments | tojson",
        "c.function.arguments if c.function.arguments is string else c.function.arguments | tojson",
        "c.function.arguments",
        "'' + c.function.arguments",
        """'{' ~ '"' ~ (c.function.arguments.keys() | join) ~ '": "' ~ c.function.arguments.city ~ '"}'""",
    ],
)
def test_arguments_come_out_as_json_whatever_the_template_expects(arguments: str) -> None:
    assert render(CALLS.replace("ARGUMENTS", arguments), CALLED) == '{"city": "Köln"}'


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    broken = {**CALL, "function": {"name": "weather", "arguments": '{"city": '}}
    messages = (CALLED[0], dataclasses.replace(CALLED[1], tool_calls=(broken,)))
    assert render(CALLS.replace("ARGUMENTS", "c.function.arguments | tojson"), messages) == '"{\\"city\\": "'


def test_a_result_says_which_call_it_answers() -> None:
    template = "{{ messages[2].tool_call_id }} {{ messages[2].name }};{{ messages | tojson }}"
    assert render(template, CALLED).startswith("a1b2c3d4e weather;")


def test_what_a_message_does_not_say_is_not_there() -> None:
    template = "{% for m in messages %}{{ m.keys() | list | join(' ') }};{% endfor %}{{ messages | tojson }}"
    assert render(template).startswith("role content;role content;[")
    assert render(template, CALLED).startswith("role content;role content tool_calls;role content tool_call_id name;[")
