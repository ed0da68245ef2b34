"""Reasoning on OpenAI's endpoints: told apart from the answer, asked for, and bounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.engine import INFO, ScriptedEngine
from tests.unit.remote.worker.http.test_app import last, parse, request
from tests.unit.remote.worker.http.test_openai import chat, says, serving
from tests.unit.remote.worker.http.test_openai_tools import ask

#: As Qwen 3's: the model opens the block itself, unless the template has closed it.
THINKS = (
    "{% for m in messages %}{{ m.role }}|{{ m.reasoning_content or '' }}|{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant|{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: As DeepSeek R1's: the template opens the block.
OPENS = THINKS.replace("<think>\n\n</think>\n\n", "").replace("assistant|", "<think>\n")
THOUGHT = "<think>\nok so\n</think>\n\nhello"
MARKERS = {"<think>": 258, "</think>": 259}


@pytest.mark.parametrize("tokens", [{}, MARKERS], ids=["text", "tokens"])
@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_comes_apart_from_the_answer(folder: Path, stream: bool, tokens: dict[str, int]) -> None:
    async with serving(folder, thinking(lambda _: THOUGHT.encode(), THINKS, tokens)) as (client, _):
        message, reason = await ask(client, stream)
        inline, _ = await ask(client, stream, extra_body={"reasoning_format": "none"})
    assert (message["reasoning_content"].strip(), message["content"].strip(), reason) == ("ok so", "hello", "stop")
    assert "reasoning_content" not in inline
    assert inline["content"].split() == ["<think>ok", "so</think>hello"]


async def test_a_block_that_the_template_has_opened(folder: Path) -> None:
    async with serving(folder, says("ok so\n</think>\n\nhello", OPENS)) as (client, _):
        message, _ = await ask(client, stream=False)
    assert (message["reasoning_content"].strip(), message["content"].strip()) == ("ok so", "hello")


async def test_stop_strings_act_on_the_answer_alone(folder: Path) -> None:
    async with serving(folder, says("<think>\nstop here\n</think>\n\nno stop now", THINKS)) as (client, _):
        message, reason = await ask(client, stream=False, stop="stop")
    assert message["reasoning_content"].strip() == "stop here"
    assert (message["content"].strip(), reason) == ("no", "stop")


@pytest.mark.parametrize("tokens", [{}, MARKERS], ids=["text", "token"])
@pytest.mark.parametrize(("budget", "expected"), [(0, ""), (4, "\nabc"), (50, "\nabcdef")])
@pytest.mark.parametrize("template", [THINKS, OPENS], ids=["model opens", "template opens"])
async def test_a_budget_ends_the_reasoning_and_the_answer_goes_on(
    folder: Path, template: str, budget: int, expected: str, tokens: dict[str, int]
) -> None:
    written = "\nabcdef</think>!"
    skipped = len(expected) if budget < 50 else 0
    engine = thinking(lambda _: b"", template, tokens)

    def answer(_: str) -> bytes:
        """What follows the reasoning is what the script has left."""
        begins = "<think>" if template is THINKS else ""
        return (begins + (written[:skipped] + "!" if budget < 50 else written)).encode()

    engine._answer = answer
    async with serving(folder, engine, slots=1) as (client, worker):
        message, reason = await ask(client, stream=False, extra_body={"thinking_budget": budget})
        events = await generated(worker, think_budget=budget)
    assert message.get("reasoning_content", "").strip() == expected.strip()
    assert (message["content"], reason) == ("!", "stop")
    forced = [MARKERS["</think>"]] if tokens else list(b"</think>")
    assert engine.accepted[0] == ([] if budget == 50 else forced)
    assert "".join(data["text"] for data in events) == "!"


async def generated(worker: Any, **options: Any) -> list[dict[str, Any]]:
    """Token events of rbee's own endpoint, which splits an answer as OpenAI's does."""
    body = request("", messages=[{"role": "user", "content": "x"}], chat=options)
    del body["prompt"]
    async with worker.client.stream("POST", "/v1/inference", json=body) as response:
        events = [event async for event in parse(response)]
    assert last(events)["finish_reason"] == "stop"
    return [data for _, name, data in events if name == "token"]


async def test_events_say_what_is_reasoning(folder: Path) -> None:
    async with serving(folder, says(THOUGHT, THINKS)) as (_, worker):
        events = await generated(worker)
    assert "".join(data.get("reasoning", "") for data in events).strip() == "ok so"
    assert "".join(data["text"] for data in events).strip() == "hello"
    assert all("calls" not in data for data in events)
    assert all(data["text"] or data["tokens"] for data in events)


@pytest.mark.parametrize(
    "said",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"enable_thinking": False},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"reasoning_effort": "none"}},
    ],
)
async def test_thinking_can_be_switched_off(folder: Path, said: dict[str, Any]) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        return b"hello"

    async with serving(folder, thinking(answer, THINKS, {})) as (_, worker):
        for body in ({}, said):
            response = await worker.client.post("/v1/chat/completions", json=chat("x", **body))
            assert response.json()["choices"][0]["message"]["content"] == "hello"
    assert ["</think>" in prompt for prompt in prompts] == [False, True]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"chat_template": "{% for m in messages %}[{{ m.content }}]{% endfor %}"}, "[x][1, 2, 3,"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}, "continue_final_message": False}, "3,\n"),
        ({"continue_final_message": True}, "1, 2, 3,"),
        ({}, "1, 2, 3,"),
    ],
)
async def test_how_a_prompt_is_made_can_be_said(folder: Path, said: dict[str, Any], expected: str) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        return b"4"

    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "1, 2, 3,"}]
    async with serving(folder, thinking(answer, THINKS, {})) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json={"messages": messages, **said})
    assert response.status_code == 200, response.text
    assert prompts[0].endswith(expected)


async def test_reasoning_of_earlier_turns_reaches_the_template(folder: Path) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        return b"ok"

    async with serving(folder, thinking(answer, THINKS, {})) as (_, worker):
        for name in ("reasoning_content", "reasoning"):
            messages = [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y", name: "because"},
                {"role": "user", "content": "z"},
            ]
            response = await worker.client.post("/v1/chat/completions", json={"messages": messages})
            assert response.status_code == 200, response.text
    assert all("assistant|because|y" in prompt for prompt in prompts)


async def test_an_answer_that_cannot_be_read_ends_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RecursionError("too deep")

    monkeypatch.setattr("rbee_remote.worker.dialects.reading.ScriptReader.feed", fail)
    async with serving(folder, says(THOUGHT, THINKS), slots=1) as (client, worker):
        broken = await worker.client.post("/v1/chat/completions", json=chat("x"))
        answer = await client.completions.create(model="m", prompt="x")
    assert broken.status_code == 500
    assert broken.json()["error"]["code"] == "INTERNAL"
    assert "cannot be read: RecursionError" in broken.json()["error"]["message"]
    assert answer.choices[0].text == THOUGHT


def thinking(answer: Any, template: str, tokens: dict[str, int]) -> ScriptedEngine:
    info = dataclasses.replace(INFO, chat_template=template, special_tokens=tokens, n_vocab=258 + len(tokens))
    return ScriptedEngine(answer, info=info, n_batch=512)
