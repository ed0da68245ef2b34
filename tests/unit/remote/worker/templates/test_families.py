"""The chat templates of the families: the same prompts as transformers makes, wherever it takes what is said."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rbee_remote.protocol import ChatOptions, Message, RemoteError
from rbee_remote.worker.templates import jinja
from rbee_remote.worker.templates.rendered import Rendered
from rbee_remote.worker.templates.template import ChatTemplate
from tests.unit.remote.worker.templates.families import (
    ANSWER,
    ASKED,
    BOS,
    CALLED,
    EOS,
    FAMILIES,
    RESULT,
    SYSTEM,
    THOUGHT,
    WEATHER,
    source,
)

CHATS = {
    "plain": (ASKED,),
    "system": (SYSTEM, ASKED),
    "turns": (SYSTEM, ASKED, ANSWER, ASKED),
    "reasoning": (ASKED, THOUGHT, ASKED),
    "prefill": (ASKED, ANSWER),
    "prefill with a blank": (ASKED, Message("assistant", "It is ")),
}
TOOL_CHATS = {
    "tools": (ASKED,),
    "tools and system": (SYSTEM, ASKED),
    "result": (SYSTEM, ASKED, CALLED, RESULT),
    "after the result": (ASKED, CALLED, RESULT, ANSWER, ASKED),
}
#: Parameters as clients describe them, with all that a template may expect and need not find.
PARAMETERS: tuple[Any, ...] = (
    {},
    True,
    {"type": "string"},
    {"type": ["string", "null"]},
    {"type": ["string", "integer", "null"], "description": "x"},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {"enum": ["a", 1, None]},
    {"type": "array"},
    {"type": "array", "items": {"type": ["string", "null"]}},
    {"type": "object", "properties": {"part": {"type": "integer"}}},
)
#: Templates that know nothing of tools, calls or results: those are described, and written as text.
TOOLLESS = {
    "DeepSeek R1", "DeepSeek R1 Distill", "DeepSeek V3.1", "Gemma 2", "Phi 3.5", "SmolLM 3",
}  # fmt: skip
#: Templates that show tools and not how they were called, or whose way of showing it the sandbox does not allow, here
#: as in transformers: calls are written as text.
CALLS_WRITTEN = {"Granite 3.3", "LFM 2", "Kimi K2", "Kimi K2 Thinking"}
#: Templates whose prompt ends where the answer begins in any case.
ALWAYS_OPEN = {"Firefunction", "Command R7B", "Devstral", "Ministral 3", "Mistral Nemo", "Mistral Small 3.2"}
#: What transformers refuses or fails on, and what is done instead.
FOLDED = {("Gemma 2", "system"), ("Gemma 2", "turns")}
WITHOUT_NONE = {"Command R+", "Hermes 2 Pro", "Hermes 3"}
#: Templates whose reasoning of an earlier answer stands in its text.
INLINE = {"DeepSeek R1", "DeepSeek R1 Distill", "DeepSeek V3.1", "Nemotron Nano 2", "Granite 3.3", "QwQ", "SmolLM 3"}


def made(family: str) -> ChatTemplate:
    return ChatTemplate(source(family), bos=BOS, eos=EOS)


def render(
    family: str, chat: tuple[Message, ...], tools: list[dict[str, Any]] | None = None, **options: Any
) -> Rendered:
    return made(family).prompt(chat, tools or [], ChatOptions(**options))


def transformers(
    family: str, chat: tuple[Message, ...], tools: list[dict[str, Any]] | None = None, **variables: Any
) -> str:
    """Raises whatever it raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    continued = chat[-1].role == "assistant"
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False, indent=4) if tools else ""
    render_all: Any = render_jinja_template  # whose annotations are not what it takes and gives
    texts, _ = render_all(
        [[_turn(message, inline=family in INLINE) for message in chat]],
        tools=tools,
        chat_template=source(family),
        add_generation_prompt=not continued,
        continue_final_message=continued,
        bos_token=BOS,
        eos_token=EOS,
        **{"functions": functions, **jinja.dates(), **variables},
    )
    text: str = texts[0]
    return text


def _turn(message: Message, *, inline: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        (call,) = message.tool_calls
        arguments = json.loads(call["function"]["arguments"])
        turn["tool_calls"] = [{**call, "function": {**call["function"], "arguments": arguments}}]
    if message.tool_call_id:
        turn |= {"tool_call_id": message.tool_call_id, "name": message.name}
    if message.reasoning and inline:
        turn["content"] = f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"
    elif message.reasoning:
        turn["reasoning_content"] = message.reasoning
    return turn


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_chats_are_rendered_as_transformers_does(family: str, chat: str) -> None:
    rendered = render(family, CHATS[chat])
    assert not rendered.warnings
    if family in WITHOUT_NONE:
        with pytest.raises(TypeError, match="NoneType"):
            transformers(family, CHATS[chat])
        assert rendered.text == transformers(family, CHATS[chat], [])
    elif (family, chat) in FOLDED:
        with pytest.raises(Exception, match="System role not supported"):
            transformers(family, CHATS[chat])
        assert f"{SYSTEM.content}\n\n{ASKED.content}" in rendered.text
    else:
        assert rendered.text == transformers(family, CHATS[chat])


@pytest.mark.parametrize("chat", TOOL_CHATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tools_are_rendered_as_transformers_does(family: str, chat: str) -> None:
    rendered = render(family, TOOL_CHATS[chat], [WEATHER])
    assert rendered.tools_described == (family in TOOLLESS)
    if family in TOOLLESS:
        assert '{"name": "weather", "description": "Tells the weather.", "parameters": {"type": ' in rendered.text
    if CALLED in TOOL_CHATS[chat] and family in TOOLLESS | CALLS_WRITTEN:
        call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
        assert rendered.text.index(call) < rendered.text.index(RESULT.content)
    elif family not in TOOLLESS:
        assert rendered.text == transformers(family, TOOL_CHATS[chat], [WEATHER])


@pytest.mark.parametrize("tool", [{"name": "now"}, {"name": "now", "description": None, "parameters": None}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tool_need_not_be_described(family: str, tool: dict[str, Any]) -> None:
    assert "now" in render(family, (ASKED,), [{"type": "function", "function": tool}]).text


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize(
    "family",
    ["Command R7B", "DeepSeek V3.1", "DeepSeek V3.2", "GLM 4.6", "GLM 4.7", "Gemma 4", "Granite 3.3", "Nemotron 3",
     "QwQ", "Qwen 3", "Qwen 3.5", "SmolLM 3"],
)  # fmt: skip
def test_reasoning_is_switched_by_the_variable_that_the_template_reads(family: str, think: bool) -> None:
    name = "thinking" if family in {"DeepSeek V3.1", "DeepSeek V3.2", "Granite 3.3"} else "enable_thinking"
    variables: dict[str, Any] = {name: think}
    expected = transformers(family, (ASKED,), **variables)
    for options in ({"think": think}, {"template_kwargs": {"enable_thinking": think}}):
        rendered = render(family, (ASKED,), **options)
        assert rendered.text == expected
        assert not rendered.warnings
    assert expected != transformers(family, (ASKED,), **(variables | {name: not think}))


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("DeepSeek R1", "><think>\n\n</think>\n\n"),
        ("DeepSeek R1 Distill", "><think>\n\n</think>\n\n"),
        ("Kimi K2 Thinking", "<|im_middle|><think>\n\n</think>\n\n"),
        ("MiniMax M2", "]~b]ai\n<think>\n\n</think>\n\n"),
        ("Ministral 3", "[/INST][THINK]\n\n[/THINK]\n\n"),
        ("Seed-OSS", "so I will directly start answering the question.</seed:cot_budget_reflect>\n</seed:think>"),
        ("Command A", "<|START_THINKING|><|END_THINKING|>"),
    ],
)
def test_a_model_that_always_reasons_answers_behind_a_closed_block(family: str, end: str) -> None:
    for options in ({"think": False}, {"reasoning_effort": "none"}):
        rendered = render(family, (ASKED,), **options)
        assert rendered.text.endswith(end)
        assert not rendered.warnings


def test_what_cannot_be_said_to_a_template_is_a_warning() -> None:
    assert "lowest effort" in render("gpt-oss", (ASKED,), think=False).warnings[0]
    assert "Reasoning: low" in render("gpt-oss", (ASKED,), think=False).text
    assert "nothing of reasoning" in render("Qwen 2.5", (ASKED,), think=True).warnings[0]
    assert "no reasoning effort" in render("Qwen 3", (ASKED,), reasoning_effort="high").warnings[0]
    assert "'mood'" in render("Qwen 3", (ASKED,), template_kwargs={"mood": "good"}).warnings[0]
    assert not render("Qwen 2.5", (ASKED,), think=False).warnings


@pytest.mark.parametrize("effort", ["low", "high"])
def test_the_effort_is_what_the_template_is_told(effort: str) -> None:
    rendered = render("gpt-oss", (ASKED,), reasoning_effort=effort)
    assert rendered.text == transformers("gpt-oss", (ASKED,), reasoning_effort=effort)
    assert f"Reasoning: {effort}" in rendered.text


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - INLINE - {"Kimi K2 Thinking", "DeepSeek V3.2", "gpt-oss"}))
def test_reasoning_at_the_beginning_of_an_answer_is_told_from_its_text(family: str) -> None:
    """As clients send back what they were given."""
    traits = made(family).compiled.traits
    written = Message("assistant", f"<think>\n{THOUGHT.reasoning}\n</think>\n\n{THOUGHT.content}")
    if traits.pair and traits.pair[0] == "<think>" and traits.field:
        assert render(family, (ASKED, written, ASKED)).text == render(family, (ASKED, THOUGHT, ASKED)).text


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("Qwen 3", "<|im_start|>assistant\n<think>\nso I"),
        ("QwQ", "<|im_start|>assistant\n<think>\nso I"),
        ("GLM 4.7", "<|assistant|><think>so I"),
    ],
)
def test_reasoning_that_is_not_closed_is_continued(family: str, end: str) -> None:
    assert render(family, (ASKED, Message("assistant", "<think>\nso I"))).text.endswith(end)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_last_answer_can_be_left_alone_or_answered(family: str) -> None:
    answered = render(family, (ASKED, ANSWER), continue_final=False).text
    continued = render(family, (ASKED, ANSWER), continue_final=True).text
    assert answered != continued or family == "Nemotron Nano 2"  # which never answers itself
    assert continued.endswith(ANSWER.content)
    opened = render(family, (ASKED,)).text
    assert (render(family, (ASKED,), add_generation_prompt=False).text != opened) == (family not in ALWAYS_OPEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_of_one_role_are_joined_where_the_template_wants_them_to_alternate(family: str) -> None:
    try:
        expected = transformers(family, (ASKED, ASKED), [] if family in WITHOUT_NONE else None)
    except Exception:
        expected = ""
    rendered = render(family, (ASKED, ASKED))
    assert rendered.text == expected or f"{ASKED.content}\n\n{ASKED.content}" in rendered.text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_word_of_the_systems_is_shown_or_refused(family: str) -> None:
    try:
        rendered = render(family, (SYSTEM, ASKED, ANSWER, Message("developer", "Now in two words."), ASKED))
    except RemoteError as error:
        assert re.search("leaves out message [14] of 5", error.message)
        assert "say it in the user's message" in error.hint
    else:
        assert "Now in two words." in rendered.text


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_described_in_any_way(family: str) -> None:
    template = ChatTemplate(source(family), bos=BOS, eos=EOS)
    for schema in PARAMETERS:
        parameters = {"type": "object", "properties": {"place": schema}}
        tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
        assert "place" in template.prompt([ASKED], [tool]).text, schema
