from __future__ import annotations

import dataclasses
import datetime
import json

import pytest

from rbee_remote.protocol import ChatOptions, ErrorCode, Message, RemoteError
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


CHATML_STOP = "<|im_end|>"


def test_a_model_without_a_template_says_so_and_ends_at_the_marker_of_the_one_that_was_taken() -> None:
    rendered = chat_template(None).render(CHAT)
    assert "no chat template; ChatML is used" in rendered.warnings[0]
    assert rendered.stops == (CHATML_STOP,)
    knowing = ChatTemplate(None, bos="<begin>", eos="<end>", special=(CHATML_STOP,))
    assert knowing.render(CHAT).stops == ()  # its token ends the answer


@pytest.mark.parametrize(
    ("end", "stops"),
    [("<|eot|>", ("<|eot|>",)), ("[/A]\n", ("[/A]",)), ("\n\n", ()), ("<end>", ()), (" <done>", ("<done>",))],
)
def test_a_requests_own_template_ends_answers_with_its_marker(end: str, stops: tuple[str, ...]) -> None:
    source = "{% for m in messages %}{{ m.content }}{{ END }}{% endfor %}".replace("{{ END }}", end)
    assert ChatTemplate(source, bos="<begin>", eos="<end>", own=True).render(CHAT).stops == stops
    assert chat_template(source).render(CHAT).stops == ()


def test_variables_of_a_request_reach_the_template_and_override_nothing_else() -> None:
    options = ChatOptions(template_kwargs={"mood": "good", "documents": [{"text": "d"}], "messages": [], "tools": 1})
    text = chat_template("{{ mood }} {{ documents[0].text }} {{ messages | length }}").render(CHAT, (), options).text
    assert text == "good d 2"


@pytest.mark.parametrize("name", ["xml_tools", "custom_tools"])
def test_tools_are_given_in_the_variable_that_the_template_reads(name: str) -> None:
    template = "{% for tool in " + name + " or [] %}{{ tool | string }}{% endfor %}"
    rendered = chat_template(template).render(CHAT, [WEATHER])
    assert "'name': 'weather'" in rendered.text
    assert not rendered.tools_described


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
)
FIRST_ALONE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first!') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}]{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "roles", "expected"),
    [
        (ALTERNATING, "system user", "[user:0\n\n1]"),
        (ALTERNATING, "system user assistant user", "[user:0\n\n1][assistant:2][user:3]"),
        (ALTERNATING, "user user assistant assistant user", "[user:0\n\n1][assistant:2\n\n3][user:4]"),
        (ALTERNATING, "developer user", "[user:0\n\n1]"),
        (ALTERNATING, "user assistant system user", "[user:0][assistant:1][user:2\n\n3]"),
        (FIRST_ALONE, "system user system user", "[system:0][user:1\n\n2\n\n3]"),
        (FIRST_ALONE, "system system user", "[system:0\n\n1][user:2]"),
        (FIRST_ALONE, "system user", "[system:0][user:1]"),
    ],
)
def test_a_chat_is_brought_into_the_shape_that_the_template_takes(template: str, roles: str, expected: str) -> None:
    messages = tuple(Message(role, str(number)) for number, role in enumerate(roles.split()))
    assert render(template, messages) == expected


def test_a_template_that_takes_no_shape_says_why_it_refuses_the_first() -> None:
    template = "{{ raise_exception(messages | map(attribute='role') | join(' ')) }}"
    with pytest.raises(RemoteError, match=r"refuses the messages: system user user$"):
        render(template, (*CHAT, Message("user", "And?")))


def test_roles_of_other_days_are_those_of_today() -> None:
    messages = (Message("developer", "d"), Message("user", "u"), Message("function", "f", name="weather"))
    template = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    assert render(template, messages) == "[system:d][user:u][tool:f]"


def test_tools_are_described_to_a_template_that_knows_nothing_of_them() -> None:
    rendered = chat_template(None).render((*CHAT[:1], *CALLED), [WEATHER])
    assert rendered.tools_described
    assert rendered.text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert '{"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"}}' in rendered.text
    call = (
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>'
    )
    assert call in rendered.text
    assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>" in rendered.text


def test_the_last_answer_is_continued_behind_its_text() -> None:
    chat = (CHAT[1], Message("assistant", "1, 2, 3, "))
    assert render(None, chat) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n1, 2, 3, "
    trimming = "{% for m in messages %}{{ m.content | trim }}<|end|>{% endfor %}"
    assert render(trimming, chat) == "Hi<|end|>1, 2, 3,"


def test_a_last_answer_that_the_template_leaves_out_is_answered_or_refused() -> None:
    chat = (CHAT[1], Message("assistant", "1, 2, 3, "))
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert "cannot continue the last message" in chat_template(template).render(chat).warnings[0]
    with pytest.raises(RemoteError, match="cannot continue message 2: it leaves it out") as caught:
        chat_template(template).render(chat, (), ChatOptions(continue_final=True))
    assert caught.value.details == {"field": "chat.continue_final"}  # by which the keeper finds what helps


@pytest.mark.parametrize(("name", "form"), [("date_string", "%d %b %Y"), ("datetime", "%b %d %Y")])
def test_a_template_is_told_the_day_in_llama_cpps_words_unless_a_request_says_another(name: str, form: str) -> None:
    template = chat_template(f"{{{{ {name} if {name} is defined else '26 Jul 2024' }}}}")
    days = {datetime.datetime.now().astimezone().strftime(form)}
    text = template.render(CHAT).text
    days.add(datetime.datetime.now().astimezone().strftime(form))  # it may be midnight
    assert text in days
    assert template.render(CHAT, options=ChatOptions(template_kwargs={name: "today"})).text == "today"


TOOL = {"type": "function", "function": {"name": "add", "description": "é", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "template",
    ["{{ 'Functions: ' + functions }}{{ messages[-1].content }}", "Functions: {{ functions | tojson(indent=4) }}Hi"],
)
def test_functions_are_given_to_a_template_in_the_form_that_it_takes(template: str) -> None:
    rendered = chat_template(template).render((Message("user", "Hi"),), (TOOL,))
    written = rendered.text.removeprefix("Functions: ").removesuffix("Hi")
    said = json.loads(written)
    assert [each.get("function", each)["name"] for each in said] == ["add"]
    assert not rendered.tools_described


def test_a_template_that_joins_functions_to_its_text_gets_none_of_them_as_no_text() -> None:
    template = chat_template("{{ 'Functions: ' + functions + '.' }}{{ messages[-1].content }}")
    assert template.render((Message("user", "Hi"),)).text == "Functions: .Hi"
    assert template.render((Message("user", "Hi"),)).text == "Functions: .Hi"
