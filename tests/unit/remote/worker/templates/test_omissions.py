"""A template that drops what was said is found out; one that only writes it in its own way is not."""

from __future__ import annotations

from typing import Any

import pytest

from rbee_remote.protocol import ErrorCode, Message, RemoteError
from rbee_remote.worker.templates import omissions
from rbee_remote.worker.templates.template import CHATML, ChatTemplate

SYSTEM = Message("system", "You answer in one word.")
LONG = Message("user", "What is the capital of France, and since when?")
SHORT = Message("user", "Hi")
CODE = Message("user", 'a\nb\nc\n\n  "x"\n')
SMILE = Message("user", "👍")
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
THOUGHT = Message("assistant", "<think>Let me see.</think>\n\nParis.")

#: What the templates of well-known families do with messages, in our own words.
FAMILIES = {
    "chatml": CHATML,
    # Trims, and puts the system's first.
    "headers": (
        "{{ bos_token }}{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
    ),
    # The system's message stands in front of the last user's.
    "inst": (
        "{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content %}"
        "{% elif m.role == 'user' %}[INST] {% if loop.last and ns.system %}{{ ns.system }}\n\n{% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>"
        "{% elif m.role == 'tool' %}[RESULT] {{ {'content': m.content} | tojson }}[/RESULT]{% endif %}{% endfor %}"
    ),
    # So does this, and only while the user's is the last of all: not once a tool has answered.
    "inst-last": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% if m.role == 'user' %}[INST]{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
        "{% else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}"
    ),
    # Drops the reasoning of earlier turns, and their text beside calls.
    "reasoning": (
        "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
        "{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}"
        "{% elif m.role == 'assistant' %}<|a|>{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}<|a|><think>\n"
    ),
    # Takes a switch out of what is said, and knows other names for the roles.
    "switches": (
        "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content.replace('/no_think', '').replace('/think', '') | trim }}</turn>\n{% endfor %}"
    ),
    # The conversation as JSON.
    "json": "{% for m in messages %}{{ m.content | tojson }}\n{% endfor %}",
    "escaped": "{% for m in messages %}{{ m.content | tojson(ensure_ascii=True) }}\n{% endfor %}",
    "upper": "{% for m in messages %}{{ m.content | upper }}{{ m.content }}\n{% endfor %}",
    # Texts in pieces, where they are.
    "pieces": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    ),
}
CHATS = {
    "short": (SHORT,),
    "long": (LONG,),
    "system": (SYSTEM, SHORT),
    "turns": (SYSTEM, LONG, THOUGHT, Message("user", "And Italy? /no_think")),
    "code": (CODE,),
    "smile": (SMILE,),
    "empty": (Message("system", ""), Message("user", " \n")),
    "twice": (SHORT, Message("assistant", "Hi"), SHORT),
    "prefill": (SYSTEM, LONG, Message("assistant", "It")),
    "switch alone": (Message("system", "/no_think"), SHORT, THOUGHT, Message("user", "/think")),
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", CHATS)
def test_templates_that_show_all_in_their_own_way_are_fine(family: str, chat: str) -> None:
    made = template(FAMILIES[family])
    assert made.prompt(CHATS[chat]).text


@pytest.mark.parametrize("family", ["chatml", "inst", "inst-last", "reasoning", "json"])
@pytest.mark.parametrize("system", [(), (SYSTEM,), (Message("system", "Brief!"),)])
def test_results_of_tools_are_shown(family: str, system: tuple[Message, ...]) -> None:
    """In one step, in the next, two at once, and after the next question."""
    call = Message("assistant", "", tool_calls=(CALL,))
    sunny, rainy = (Message("tool", word, tool_call_id="a1b2c3d4e") for word in ("sunny", '{"sky": "rain"}'))
    for steps in ((call, sunny), (call, sunny, call, rainy), (call, sunny, rainy), (call, sunny, THOUGHT, SHORT)):
        assert template(FAMILIES[family]).prompt((*system, LONG, *steps))


@pytest.mark.parametrize(
    ("source", "messages", "role", "code"),
    [
        ("Tell a joke.", (LONG,), "user", ErrorCode.MODEL_INVALID),
        ("Tell a joke.", (SHORT,), "user", ErrorCode.MODEL_INVALID),
        ("Hi. I am sure that this is a joke.", (SHORT,), "user", ErrorCode.MODEL_INVALID),
        ("{{ messages[-1].content }}", (LONG, THOUGHT, SHORT), "user", ErrorCode.MODEL_INVALID),
        ("{{ messages[0].content }}", (LONG, THOUGHT, Message("user", "Why?")), "user", ErrorCode.MODEL_INVALID),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", (SMILE,), "user", ErrorCode.MODEL_INVALID),
        ("{% if messages[0].content | length < 9 %}{{ messages[0].content }}{% endif %}", (LONG,), "user",
         ErrorCode.MODEL_INVALID),
        ("{{ messages[0].content[:5] }}", (LONG,), "user", ErrorCode.MODEL_INVALID),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", (SYSTEM, LONG), "system",
         ErrorCode.USAGE),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
         (SYSTEM, LONG, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "sunny")), "system",
         ErrorCode.USAGE),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", (SYSTEM, THOUGHT), "system",
         ErrorCode.USAGE),
        ("{% for m in messages %}{% if loop.last or m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}",
         (SYSTEM, LONG, Message("assistant", "", tool_calls=(CALL,)), Message("tool", "sunny")), "user",
         ErrorCode.MODEL_INVALID),
        ("{% for m in messages %}{% if loop.first or m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
         (SYSTEM, LONG, THOUGHT, Message("system", "Now in two.")), "system", ErrorCode.USAGE),
        ("{{ messages[0].content }}", (Message("user", "/think"), THOUGHT, Message("user", "/think")), "user",
         ErrorCode.MODEL_INVALID),
    ],
)  # fmt: skip
def test_a_message_that_is_left_out_is_an_error(
    source: str, messages: tuple[Message, ...], role: str, code: ErrorCode
) -> None:
    with pytest.raises(RemoteError, match=f"leaves out message . of ., which is the {role}'s") as caught:
        template(source).prompt(messages)
    assert caught.value.code is code
    assert bool(caught.value.hint) == (code is ErrorCode.USAGE)


def test_what_the_assistant_said_may_be_dropped() -> None:
    source = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"
    assert template(source).prompt((LONG, THOUGHT, SHORT)).text == LONG.content + SHORT.content


def test_a_template_that_fails_on_the_probe_is_judged_by_the_prompt_alone() -> None:
    source = "{% if 'mark' in messages[0].content %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}"
    assert template(source).prompt((SHORT,)).text == "Hi"


@pytest.mark.parametrize(
    ("messages", "advice"),
    [
        ((SYSTEM, SHORT), "say it in the user's message"),
        ((SHORT, SYSTEM), "say it in the user's message, or in one system message at the beginning"),
        ((SYSTEM, SYSTEM, SHORT), "say it in the user's message, or in one system message at the beginning"),
    ],
)
def test_where_else_to_say_what_the_system_says(messages: tuple[Message, ...], advice: str) -> None:
    with pytest.raises(RemoteError) as caught:
        template("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}").prompt(
            messages
        )
    assert caught.value.hint == advice


class Counted(str):
    """A prompt that knows how many of its characters were looked at."""

    __slots__ = ("read",)

    def find(self, piece: str, start: int = 0) -> int:  # type: ignore[override]
        here = super().find(piece, start)
        self.read = getattr(self, "read", 0) + (here if here >= 0 else len(self)) - start
        return here


@pytest.mark.parametrize(
    "said", ["Hi", 'She said "no", and went on with it.', "/no_think Who? And why, and what then?"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_work_grows_with_the_conversation_and_no_faster(
    monkeypatch: pytest.MonkeyPatch, family: str, said: str
) -> None:
    """5,000 turns: the template runs for the prompt and one probe of it, whose marks are looked for once."""
    monkeypatch.setattr(omissions, "_MOST_READ", 0)
    made, renders, read = template(FAMILIES[family]), [], []
    render, find = made.compiled.render, omissions.find

    def counting(*args: Any) -> str:
        renders.append(args)
        return render(*args)

    def finding(turns: Any, prompt: str, shown: Any) -> list[int]:
        counted = Counted(prompt)
        missing = find(turns, counted, shown)
        read.append(getattr(counted, "read", 0) / len(prompt))
        return missing

    monkeypatch.setattr(made.compiled, "render", counting)
    monkeypatch.setattr(omissions, "find", finding)
    assert made.prompt([Message("user", said)] * 5000)
    assert len(renders) <= 2
    assert max(read) < 20


def test_a_message_is_found_wherever_it_stands() -> None:
    """Newest first, so none of them stands behind the one before it."""
    messages = [Message("user", f"{number} " * 5) for number in range(2000)]
    assert template("{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}").prompt(messages)
    swallowing = "{% for m in messages | reverse if '1234 ' not in m.content %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(RemoteError, match="leaves out message 1235 of 2000"):
        template(swallowing).prompt(messages)
