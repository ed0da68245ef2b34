"""Tools on OpenAI's endpoints: what the template gets, how calls come back, and what a choice makes of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from rbee_remote.worker.engine.interface import Constraint
from tests.doubles.engine import INFO, ScriptedEngine
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_openai import HERMES, WEATHER, Client, chat, says, serving

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Kraków"}}\n</tool_call>'
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
#: Of a model that writes no marks in its prompts, so that a test sees what is in them.
TELLS = (
    "{% for t in tools or [] %}{{ t.function.name }}:{{ t.function.description }}:{{ t.function.parameters | tojson }};"
    "{% endfor %}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


async def ask(client: Client, stream: bool, **values: Any) -> tuple[dict[str, Any], str | None]:
    """The message of an answer, put together from its deltas where it is streamed, and why it ended."""
    if not stream:
        choice = (await client.chat.completions.create(**chat("x", **values))).choices[0]
        return choice.message.model_dump(exclude_none=True), choice.finish_reason
    message: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    reason = None
    async for chunk in await client.chat.completions.create(**chat("x", **values), stream=True):
        reason = chunk.choices[0].finish_reason or reason
        delta = chunk.choices[0].delta.model_dump(exclude_none=True)
        for entry in delta.pop("tool_calls", []):
            if entry["index"] == len(calls):
                calls.append(entry)
                assert entry["type"] == "function"
                assert entry["function"]["name"]
            else:
                assert "name" not in entry["function"]
                calls[entry["index"]]["function"]["arguments"] += entry["function"]["arguments"]
        for key, text in delta.items():
            message[key] = message.get(key, "") + text
    return message | ({"tool_calls": calls} if calls else {}), reason


def called(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_model_calls_tools(folder: Path, stream: bool) -> None:
    async with serving(folder, says(f"Let me see. {CALL}\n{CALL}", HERMES)) as (client, _):
        message, reason = await ask(client, stream, tools=[WEATHER])
        one, _ = await ask(client, stream, tools=[WEATHER], parallel_tool_calls=False)
    assert message["content"].strip() == "Let me see."
    assert called(message) == [("weather", '{"city": "Kraków"}')] * 2
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(len(each) == 9 and each.isalnum() for each in ids)
    assert reason == "tool_calls"
    assert called(one) == called(message)[:1]


async def test_arguments_come_in_pieces_after_the_name(folder: Path) -> None:
    async with serving(folder, says(CALL, HERMES)) as (client, _):
        stream = await client.chat.completions.create(**chat("x"), tools=[WEATHER], stream=True)
        entries = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert entries[0].function is not None
    assert (entries[0].index, entries[0].type, entries[0].function.name) == (0, "function", "weather")
    assert len(entries) > 5
    assert all(entry.id is None and entry.index == 0 for entry in entries[1:])


async def test_a_message_with_calls_alone_has_null_for_content(folder: Path) -> None:
    async with serving(folder, says(CALL, HERMES)) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json=chat("x", tools=[WEATHER]))
    message = response.json()["choices"][0]["message"]
    assert message["content"] is None
    assert "reasoning_content" not in message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_cut_off_is_a_part_of_a_call(folder: Path, stream: bool) -> None:
    async with serving(folder, says(CALL, HERMES)) as (client, _):
        message, reason = await ask(client, stream, tools=[WEATHER], tool_choice="required", max_tokens=55)
    ((name, arguments),) = called(message)
    assert name == "weather"
    assert '{"city": "Kraków"}'.startswith(arguments)
    assert not message.get("content")
    assert reason == "length"


@pytest.mark.parametrize(
    ("choice", "parallel", "names", "several"),
    [
        ("required", None, {"weather", "clock"}, False),
        ("required", True, {"weather", "clock"}, True),
        ("any", None, {"weather", "clock"}, False),
        ({"type": "function", "function": {"name": "weather"}}, True, {"weather"}, False),
        ({"type": "function", "name": "clock"}, None, {"clock"}, False),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}},
            None,
            {"clock"},
            False,
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]},
            None,
            {"clock"},
            True,
        ),
    ],
)
async def test_a_choice_becomes_a_grammar(
    folder: Path, choice: Any, parallel: bool | None, names: set[str], several: bool
) -> None:
    engine = says(CALL, HERMES)
    async with serving(folder, engine) as (_, worker):
        response = await worker.client.post(
            "/v1/chat/completions",
            json=chat("x", tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=parallel),
        )
    assert response.status_code == 200, response.text
    (constraint,) = engine.constraints.values()
    assert constraint is not None
    assert {name for name in ("weather", "clock") if f'"{name}' in constraint.grammar.replace("\\", "")} == names
    assert (")*" in constraint.grammar) == several


async def test_free_calls_have_no_grammar_and_strict_ones_have(folder: Path) -> None:
    engine = says("no call", HERMES)
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    async with serving(folder, engine, slots=1) as (client, _):
        seen = []
        for tool in (WEATHER, strict):
            await client.chat.completions.create(**chat("x", tools=[tool]))
            seen.append(engine.constraints[0] is not None)
    assert seen == [False, True]


async def test_tools_and_a_format_are_a_call_or_content_that_fits(folder: Path) -> None:
    engine = says('{"a": 1}', HERMES)
    async with serving(folder, engine) as (client, _):
        answer = await client.chat.completions.create(
            **chat("x"), tools=[WEATHER], response_format={"type": "json_object"}
        )
    (constraint,) = engine.constraints.values()
    assert constraint is not None
    assert "weather" in constraint.grammar
    assert constraint.grammar.count("%json") == 2
    assert answer.choices[0].message.content == '{"a": 1}'
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("more", [{}, {"description": None}, {"parameters": None, "strict": None}])
async def test_a_tool_without_description_and_parameters_is_served(folder: Path, more: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "clock", **more}}]
    async with serving(folder, says("ok", TELLS)) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json=chat("x", tools=tools))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("given", ["fs.read", "x" * 80, "größe"])
async def test_names_that_templates_do_not_take_are_mapped_and_mapped_back(folder: Path, given: str) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        name = prompt.partition(":")[0]
        return f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>'.encode()

    info = dataclasses.replace(INFO, chat_template=TELLS)
    function = {"name": given, "arguments": "{}"}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "function", "name": given, "content": "done"},
    ]
    async with serving(folder, ScriptedEngine(answer, info=info, n_batch=512)) as (_, worker):
        response = await worker.client.post(
            "/v1/chat/completions",
            json={"messages": messages, "tools": [{"type": "function", "function": {"name": given}}]},
        )
    call = response.json()["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == given
    safe = prompts[0].partition(":")[0]
    assert len(safe) <= 64
    assert safe.isascii()
    assert f"x{safe}{{" in prompts[0]


async def test_names_that_become_alike_stay_apart(folder: Path) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a.b", "a_b", "a b")]
    call = '<tool_call>{"name": "a_b_3", "arguments": {}}</tool_call>'
    async with serving(folder, says(call, TELLS)) as (client, _):
        answer = await client.chat.completions.create(**chat("x"), tools=tools)  # type: ignore[arg-type]
    calls: Any = answer.choices[0].message.tool_calls
    assert [found.function.name for found in calls] == ["a b"]


async def test_a_model_that_knows_no_tools_is_told_of_them(folder: Path) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        return CALL.encode()

    async with serving(folder, ScriptedEngine(answer, n_batch=512)) as (client, _):
        given = await client.chat.completions.create(**chat("x"), tools=[WEATHER], tool_choice="required")
    calls: Any = given.choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments) == {"city": "Kraków"}
    assert "Weather of a city" in prompts[0]


async def test_a_schema_that_cannot_be_is_refused_with_its_tool(folder: Path) -> None:
    wrong = {"name": "w", "strict": True, "parameters": {"type": "object", "properties": {"a": {"enum": []}}}}
    async with serving(folder, says("ok", HERMES)) as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                **chat("x", tools=[WEATHER, {"type": "function", "function": wrong}], tool_choice="required")
            )
    assert (caught.value.param or "").startswith("tools[1].function.parameters")


class SlowEngine(ScriptedEngine):
    """Compiles a grammar when it may."""

    may = threading.Event()

    def constraint(self, grammar: str) -> Constraint:
        assert self.may.wait(PATIENCE_S)
        return super().constraint(grammar)


async def test_schemas_that_take_long_keep_nobody_waiting_but_their_own(folder: Path) -> None:
    engine = SlowEngine(lambda _: b"{}", n_batch=512)
    async with serving(folder, engine, queue=64) as (client, worker):
        await worker.until(lambda status: status["state"] == "idle")
        schema: Any = {"type": "json_object"}
        slow = [
            asyncio.create_task(client.chat.completions.create(**chat("x"), response_format=schema)) for _ in range(40)
        ]
        await asyncio.sleep(0.2)
        plain = await client.chat.completions.create(**chat("x"))
        assert not any(task.done() for task in slow)
        engine.may.set()
        answers = await asyncio.gather(*slow)
    assert plain.choices[0].message.content == "{}"
    assert {answer.choices[0].message.content for answer in answers} == {"{}"}
