"""OpenAI's own client against a whole worker: real socket, real HTTP, real engine thread, scripted engine."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from rbee_remote.protocol import Logprob, Logprobs, Sampling
from rbee_remote.worker.engine.interface import Constraint, Sampled
from tests.doubles.engine import INFO, ScriptedEngine, loads
from tests.unit.remote.worker.http.test_app import Worker, echo, running

Client = openai.AsyncOpenAI

HERMES = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class TellingEngine(ScriptedEngine):
    """Keeps the settings of each request, and tells probabilities where they are asked for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settings: list[Sampling] = []
        self._settings: dict[int, Sampling] = {}

    def start(
        self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        super().start(seq, sampling, seed, prompt, constraint)
        self.settings.append(sampling)
        self._settings[seq] = sampling

    def sample(self, seq: int, row: int) -> Sampled:
        token = super().sample(seq, row).token
        told = self._settings[seq].logprobs
        if told is None:
            return Sampled(token)
        piece = self.piece(token)
        entry = Logprob(piece.decode(errors="replace"), tuple(piece), -0.5)
        return Sampled(token, Logprobs(entry, (entry, Logprob("?", (63,), float("-inf")))[:told]))


@contextlib.asynccontextmanager
async def serving(folder: Path, engine: ScriptedEngine, **values: Any) -> AsyncIterator[tuple[Client, Worker]]:
    async with running(folder, loads(engine), **{"ctx": 2048, "slots": 2, **values}) as worker:
        transport = httpx2.AsyncHTTPTransport(uds=str(worker.socket))
        http = httpx2.AsyncClient(transport=transport)
        async with Client(base_url="http://worker/v1", api_key="none", max_retries=0, http_client=http) as client:
            yield client, worker


def says(text: str, template: str | None = INFO.chat_template) -> TellingEngine:
    info = dataclasses.replace(INFO, chat_template=template)
    return TellingEngine(lambda _: text.encode(), info=info, n_batch=512)


def chat(text: str, **values: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **values}


async def test_a_chat_completion(folder: Path) -> None:
    async with serving(folder, says("héllo")) as (client, _):
        first = await client.chat.completions.create(**chat("abc"))
        long = [await client.chat.completions.create(**chat("x" * 200)) for _ in range(2)]
    (choice,) = first.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "héllo", "stop")
    assert first.object == "chat.completion"
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.total_tokens) == (4, 6, 10)
    details = [answer.usage and answer.usage.prompt_tokens_details for answer in long]
    assert [detail and detail.cached_tokens for detail in details] == [0, 200]


async def test_a_streamed_chat_completion(folder: Path) -> None:
    async with serving(folder, says("héllo")) as (client, _):
        stream = await client.chat.completions.create(
            **chat("abc"), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert [delta.role for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
    assert "".join(delta.content or "" for delta in deltas) == "héllo"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [*[None] * (len(deltas) - 1), "stop"]
    assert [chunk.usage is None for chunk in chunks] == [*[True] * len(deltas), False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_the_raw_stream_ends_with_done(folder: Path) -> None:
    async with serving(folder, says("x")) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json=chat("abc", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    lines = response.text.split("\n\n")
    assert all(line.startswith("data: {") for line in lines[:-2])
    assert lines[-2:] == ["data: [DONE]", ""]
    assert '"usage"' not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_with_seeds_of_their_own(folder: Path, stream: bool) -> None:
    engine = says("hi")
    async with serving(folder, engine) as (client, _):
        answer: Any = await client.chat.completions.create(
            **chat("abc"), n=3, seed=2**32 - 2, stream=stream, stream_options={"include_usage": True}
        )
        texts = {0: "", 1: "", 2: ""}
        if stream:
            async for chunk in answer:
                usage = chunk.usage
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
        else:
            usage = answer.usage
            texts = {choice.index: choice.message.content for choice in answer.choices}
    assert texts == {0: "hi", 1: "hi", 2: "hi"}
    assert sorted(settings.seed or 0 for settings in engine.settings) == [0, 1, 2**32 - 2]
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 6)


async def test_settings_reach_the_sampler_under_their_own_names(folder: Path) -> None:
    engine = says("hi")
    async with serving(folder, engine) as (client, _):
        await client.chat.completions.create(**chat("abc"))
        await client.chat.completions.create(
            **chat("abc"),
            temperature=0,
            top_p=0.5,
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"104": -3},
            seed=7,
            extra_body={"top_k": 3, "min_p": 0.2, "repeat_penalty": 1.5, "nobody_knows_this": [1]},
        )
    default, given = engine.settings
    assert default == Sampling()
    assert given == Sampling(
        temperature=0.0,
        top_p=0.5,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        logit_bias={"104": -3.0},
        seed=7,
        top_k=3,
        min_p=0.2,
        repeat_penalty=1.5,
    )


@pytest.mark.parametrize(
    ("values", "expected", "reason"),
    [
        ({"stop": "c"}, "ab", "stop"),
        ({"stop": ["d", "bc"]}, "a", "stop"),
        ({"max_tokens": 2}, "ab", "length"),
        ({"max_completion_tokens": 3, "max_tokens": 2}, "abc", "length"),
        ({"max_tokens": -1}, "abcd", "stop"),
    ],
)
async def test_where_an_answer_ends(folder: Path, values: dict[str, Any], expected: str, reason: str) -> None:
    async with serving(folder, says("abcd")) as (client, _):
        answer = await client.chat.completions.create(**chat("x", **values))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, reason)


async def test_logprobs_of_a_chat(folder: Path) -> None:
    async with serving(folder, says("é")) as (client, _):
        answer = await client.chat.completions.create(**chat("x"), logprobs=True, top_logprobs=2)
        plain = await client.chat.completions.create(**chat("x"))
        stream = await client.chat.completions.create(**chat("x"), logprobs=True, stream=True)
        streamed = [c.choices[0].logprobs.content async for c in stream if c.choices[0].logprobs]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.bytes for entry in logprobs.content] == [[0xC3], [0xA9]]
    assert [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs] == [("\ufffd", -0.5), ("?", -9999.0)]
    assert plain.choices[0].logprobs is None
    assert [entry.bytes for entries in streamed for entry in entries or []] == [[0xC3], [0xA9]]


async def test_logprobs_of_a_completion(folder: Path) -> None:
    async with serving(folder, says("aé!")) as (client, _):
        answer = await client.completions.create(model="m", prompt="x", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "\ufffd", "\ufffd", "!"]
    assert logprobs.text_offset == [0, 1, 1, 2]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.5}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([256, 97, 98], ["ab"]),
        ([[256, 97], [256, 98]], ["a", "b"]),
    ],
)
async def test_prompts_of_a_completion(folder: Path, prompt: Any, expected: list[str]) -> None:
    async with serving(folder, ScriptedEngine(echo)) as (client, _):
        answer = await client.completions.create(model="m", prompt=prompt, n=2)
        stream = await client.completions.create(model="m", prompt=prompt, stream=True)
        texts = [""] * len(expected)
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [choice.text for choice in answer.choices] == [text for text in expected for _ in range(2)]
    assert [choice.index for choice in answer.choices] == list(range(2 * len(expected)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(text) + 1 for text in expected)
    assert texts == expected


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_can_repeat_its_prompt(folder: Path, stream: bool) -> None:
    async with serving(folder, says("!")) as (client, _):
        answer: Any = await client.completions.create(model="m", prompt="ab", echo=True, stream=stream)
        texts = [c.choices[0].text async for c in answer] if stream else [answer.choices[0].text]
    assert "".join(texts) == "ab!"


async def test_tools_and_the_results_of_calls_are_in_the_prompt(folder: Path) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> bytes:
        prompts.append(prompt)
        return b"ok"

    info = dataclasses.replace(INFO, chat_template=HERMES)
    function = {"name": "weather", "arguments": '{"city":"Rome"}'}
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "tool_calls": [{"id": "call00001", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
    ]
    async with serving(folder, ScriptedEngine(answer, info=info, n_batch=512)) as (client, _):
        for choice in ("auto", "none"):
            await client.chat.completions.create(
                model="m",
                messages=messages,
                tools=[WEATHER],
                tool_choice=choice,
            )
    assert all(prompt.endswith('Be brief.Rome?weather{"city": "Rome"}sunny') for prompt in prompts)
    assert ["Weather of a city" in prompt for prompt in prompts] == [True, False]


async def test_models(folder: Path) -> None:
    async with serving(folder, says("")) as (client, _):
        listed = await client.models.list()
        shown = await client.models.retrieve("m")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("hf:somebody/else")
    assert [model.id for model in listed.data] == ["m"]
    assert shown == listed.data[0]
    assert "warnings" not in shown.model_dump()


async def test_a_model_without_a_template_is_told(folder: Path) -> None:
    async with serving(folder, says("x", None)) as (client, _):
        await client.completions.create(model="m", prompt="x")
        shown = await client.models.retrieve("m")
        answer = await client.chat.completions.create(**chat("x"))
    (warning,) = shown.model_dump()["warnings"]
    assert "no chat template" in warning
    assert answer.choices[0].message.content == "x"


async def test_embeddings_in_both_encodings(folder: Path) -> None:
    async with serving(folder, ScriptedEngine(echo)) as (client, worker):
        floats = await client.embeddings.create(model="m", input=["ab", "ab", "cd"], encoding_format="float")
        packed = await client.embeddings.create(model="m", input="ab")
        tokens = await client.embeddings.create(model="m", input=[256, 97, 98])
        short = await client.embeddings.create(model="m", input=[[256, 97, 98]], dimensions=98)
        raw = await worker.client.post("/v1/embeddings", json={"input": "ab", "encoding_format": "base64"})
    vectors = [data.embedding for data in floats.data]
    assert [data.index for data in floats.data] == [0, 1, 2]
    assert vectors[0] == vectors[1] != vectors[2]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1)
    assert packed.data[0].embedding == pytest.approx(vectors[0])
    assert tokens.data[0].embedding == pytest.approx(vectors[0])
    assert (floats.usage.prompt_tokens, packed.usage.total_tokens) == (9, 3)
    assert len(short.data[0].embedding) == 98
    assert short.data[0].embedding[97] == pytest.approx(1)
    (encoded,) = raw.json()["data"]
    assert struct.unpack(f"<{INFO.n_vocab}f", base64.b64decode(encoded["embedding"])) == pytest.approx(vectors[0])


async def test_more_texts_than_the_queue_holds_are_embedded(folder: Path) -> None:
    texts = [f"text {number}" for number in range(40)]
    async with serving(folder, ScriptedEngine(echo), queue=2) as (client, _):
        answer = await client.embeddings.create(model="m", input=texts)
    assert len({tuple(data.embedding) for data in answer.data}) == 40 - 3  # a sum of letters cannot tell 12 from 21
