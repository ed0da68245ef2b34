"""An answer that is cut anywhere and goes on is the one that was not cut, line by line."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee_remote.protocol import HEADER_TRACK, HEADER_USAGE, NO_CHOICE, RESUME_FIELD, Resume, Sent, Tracked, encode
from tests.doubles.engine import END, INFO, ScriptedEngine, loads
from tests.unit.remote.worker.http.cutting import Body, Lines, Told, cut, joined, lines_of, parts, tokens_of, tracked
from tests.unit.remote.worker.http.test_app import echo, running
from tests.unit.remote.worker.http.test_openai import WEATHER, TellingEngine, chat
from tests.unit.remote.worker.http.test_openai_reasoning import MARKERS, THINKS

T = TypeVar("T")

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
PIECES = ("a", "bc ", "é", "😀", "\n", "sto", "stop", "<", "<think>", "</think>", CALL, CALL[:30])
#: Reads calls as Hermes does, and reasoning between the marks.
TEMPLATE = "{% for t in tools or [] %}{{ t | tojson }}<tool_call>{% endfor %}" + THINKS


class Running:
    """A worker for many examples, in a loop that runs while something is asked of it. script: what it answers."""

    def __init__(self) -> None:
        self.script = ""
        info = dataclasses.replace(INFO, chat_template=TEMPLATE, n_vocab=260, special_tokens=MARKERS)
        engine = TellingEngine(lambda _: self.script.encode(), info=info, n_batch=64)
        self._load = loads(engine)
        self._loop = asyncio.new_event_loop()
        self._context = contextlib.AsyncExitStack()

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(what)

    def __enter__(self) -> Running:
        folder = Path(self._context.enter_context(tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp")))
        entered = self._context.enter_async_context(running(folder, self._load, ctx=2048, slots=2))
        self.client = self.do(entered).client
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._context.aclose())
        self._loop.close()


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, Body, str]:
    """A path, a body and the script of its answer."""
    body: Body = {
        "n": draw(st.integers(1, 2)),
        "max_tokens": draw(st.none() | st.integers(0, 60)),
        "stop": draw(st.none() | st.just("stop")),
        "stream_options": {"include_usage": draw(st.booleans())},
        "temperature": draw(st.sampled_from((0, 0.8))),
        "seed": draw(st.none() | st.just(7)),
    }
    pieces: tuple[str, ...] = PIECES
    path = draw(st.sampled_from(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")))
    if path == "/v1/messages":
        body = {**chat("x"), "max_tokens": body["max_tokens"], "temperature": body["temperature"], "seed": body["seed"]}
        body |= {"stop_sequences": draw(st.none() | st.just(["stop"])), "tools": None, "logprobs": None}
        if draw(st.booleans()):
            function = WEATHER["function"]
            body["tools"] = [{"name": function["name"], "input_schema": function["parameters"]}]
        return path, body, "".join(draw(st.lists(st.sampled_from(pieces), max_size=12)))
    if path == "/v1/responses":
        body |= {"n": None, "input": "x", "logprobs": None, "tools": [_flat(WEATHER)] if draw(st.booleans()) else None}
        return path, body, "".join(draw(st.lists(st.sampled_from(pieces), max_size=12)))
    if path == "/v1/completions":
        logprobs = draw(st.none() | st.just(1))
        return (
            path,
            {**body, "prompt": draw(st.sampled_from(("x", ["x", "y"]))), "logprobs": logprobs},
            ("".join(draw(st.lists(st.sampled_from(pieces), max_size=12)))),
        )
    body |= {"logprobs": draw(st.booleans()), "reasoning_format": draw(st.sampled_from(("auto", "none")))}
    body["tools"] = [WEATHER] if draw(st.booleans()) else None
    if draw(st.booleans()):
        body["think_budget"] = draw(st.integers(0, 4))
        pieces = tuple(piece for piece in pieces if piece != "</think>")  # the script cannot tell it from a forced one
    return path, {**chat("x"), **body}, "".join(draw(st.lists(st.sampled_from(pieces), max_size=12)))


def _flat(tool: Body) -> Body:
    """As Responses have it."""
    return {"type": "function", **tool["function"]}


SHARES = st.lists(st.floats(0, 1), min_size=5, max_size=5)


def test_any_answer_cut_anywhere_goes_on() -> None:
    with Running() as worker:

        @given(request=requests(), cuts=st.lists(SHARES, min_size=1, max_size=2))
        @settings(max_examples=90)
        def goes_on(request: tuple[str, Body, str], cuts: list[list[float]]) -> None:
            path, body, worker.script = request
            told = worker.do(tracked(worker.client, path, body))
            expected = lines_of(told)
            assert all(tokens.count(END) <= 1 for tokens in tokens_of(told).values())
            for shares in cuts:
                resume, kept = _cut(told, body, shares)
                rest = worker.do(tracked(worker.client, path, body, resume))
                assert joined(kept, rest) == expected
                told = _as_one(resume, kept, rest)

        goes_on()


def _cut(told: list[Told], body: Body, shares: list[float]) -> tuple[Resume, Lines]:
    """shares: of each choice's lines, those that the client has."""
    has_logprobs = body["logprobs"] not in (None, False)
    return cut(told, lambda choice, count: round(shares[choice] * count), whole=has_logprobs)


def _as_one(resume: Resume, kept: dict[int, list[str]], rest: list[Told]) -> list[Told]:
    """What a gateway knows of an answer that has gone on once."""
    state = resume.state
    before = [
        Told(Tracked(int(name), sent.tokens, sent.lines, state), tuple(kept[int(name)]))
        for name, sent in resume.choices.items()
    ]
    return [part for part in before if part.lines or part.tracked.tokens] + rest


async def test_without_being_asked_nothing_is_told(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        body = {"prompt": "hi", "stream": True}
        plain = await worker.client.post("/v1/completions", json=body)
        asked = await worker.client.post("/v1/completions", json=body, headers={HEADER_TRACK: "1"})
        events = await worker.client.post("/v1/inference", json={"request_id": "0" * 32, "prompt": "hi"})
    assert not any(line.startswith(":") for line in plain.text.splitlines())
    assert '"token"' not in events.text
    comments = [line for line in asked.text.splitlines() if line.startswith(":")]
    said = [json.loads(line.removeprefix(": rbee ")) for line in comments]
    assert said[0].pop("state").keys() == {"id", "created", "model", "fingerprint", "seeds"}
    assert said == [
        {"choice": 0, "tokens": [ord("h")], "lines": 1},
        {"choice": 0, "tokens": [ord("i")], "lines": 1},
        {"choice": 0, "tokens": [END], "lines": 0},
        {"choice": 0, "tokens": [], "lines": 1},
        {"choice": NO_CHOICE, "tokens": [], "lines": 1, "usage": {"prompt": 3, "cached": 2, "completion": 2}},
    ]


async def test_whole_answers_and_embeddings_tell_their_usage(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        told = []
        for path, body in (("completions", {"prompt": "hi", "n": 2}), ("embeddings", {"input": ["a", "bc"]})):
            for headers in ({HEADER_TRACK: "1"}, {}):
                answer = await worker.client.post(f"/v1/{path}", json=body, headers=headers)
                told.append(answer.headers.get(HEADER_USAGE))
    assert [json.loads(usage) for usage in told if usage] == [
        {"prompt": 3, "cached": 0, "completion": 4},
        {"prompt": 5, "cached": 0, "completion": 0},
    ]
    assert told[1::2] == [None, None]


GOOD = {"id": "a", "created": 1, "model": "m", "fingerprint": "f", "seeds": [1]}
#: What is changed of a request, and what is said of it.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"choices": {"1": {}}}, "no choice '1'"),
    ({"choices": {"0": {"tokens": [260]}}}, "from 0 to 257, got 260"),
    ({"choices": {"0": {"tokens": [-1]}}}, "from 0 to 257, got -1"),
    ({"choices": {"0": {"tokens": [65] * 6}}}, "6 tokens, and the request allows 5"),
    ({"choices": {"0": {"tokens": [END, 65]}}}, "goes on with token 65 after its end"),
    ({"choices": {"0": {"tokens": [65], "lines": -1}}}, "choices.0"),
    ({"choices": {"-1": {"tokens": [65]}}}, "choices.-1"),
    ({"choices": {"0": {"tokens": ["a"]}}}, "choices.0.tokens[0]: expected int"),
    ({"choices": 5}, "choices"),
    ({"state": {}}, "state: id: missing"),
    ({"state": {**GOOD, "id": "a b"}}, "state"),
    ({"state": {**GOOD, "seeds": [1, 2]}}, "state"),
    ({"state": {**GOOD, "seeds": [2**32]}}, "state"),
    ({"state": {**GOOD, "id": "a" * 65}}, "state"),
]


async def test_what_cannot_go_on_is_refused(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        for change, named in REFUSED:
            body = {"prompt": "AAAAAAAA", "max_tokens": 4, "stream": True}
            body[RESUME_FIELD] = {"state": GOOD, "choices": {}, **change}
            answer = await worker.client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, RESUME_FIELD)
            assert named in answer.json()["error"]["message"]
        whole = await worker.client.post("/v1/completions", json={**body, "stream": False})
        assert "only a stream can be resumed" in whole.text


async def test_an_answer_that_was_over_ends_without_a_step(folder: Path) -> None:
    engine = ScriptedEngine(echo)
    async with running(folder, loads(engine)) as worker:
        told = await tracked(worker.client, "/v1/completions", {"prompt": "hi"})
        steps = engine.steps
        resume, kept = cut(told, lambda choice, count: count - 1 if choice == 0 else 0)
        resume.choices["0"] = dataclasses.replace(resume.choices["0"], tokens=tuple(tokens_of(told)[0]))
        rest = await tracked(worker.client, "/v1/completions", {"prompt": "hi"}, resume)
    assert engine.steps == steps
    assert joined(kept, rest) == {**lines_of(told)}
    assert tokens_of(rest)[0] == []


async def test_what_was_chosen_before_counts_for_no_prompt(folder: Path) -> None:
    body = {**chat("a prompt of which all is told again"), "temperature": 0}
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        told = await tracked(worker.client, "/v1/chat/completions", body)
        resume, _ = cut(told, lambda _, lines: lines - 2)
        usage = (await tracked(worker.client, "/v1/chat/completions", body, resume))[-1].tracked.usage
    assert usage is not None
    assert 0 < usage.cached <= usage.prompt


async def test_probabilities_that_nobody_knows_are_not_made_up(folder: Path) -> None:
    async with running(folder, loads(TellingEngine(echo))) as worker:
        body = {"prompt": "hi", "logprobs": 0, "stream": True}
        told = await tracked(worker.client, "/v1/completions", body)
        state = told[0].tracked.state
        assert state
        resume = encode(Resume(state, {"0": Sent((ord("h"),), 0)}))
        answer = await worker.client.post("/v1/completions", json={**body, RESUME_FIELD: resume})
    assert "leave out tokens whose lines are missing" in answer.text


async def test_the_log_has_the_name_of_a_request(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rbee.worker")
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        for name in ("abc-1", "a b"):
            await worker.client.post("/v1/completions", json={"prompt": "hi"}, headers={"X-Rbee-Request": name})
    assert [record.getMessage().split(" is ")[0] for record in caplog.records if "cmpl-" in record.getMessage()] == [
        "request abc-1"
    ]


async def test_an_error_in_mid_answer_is_told_of_too(folder: Path) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise RuntimeError("broken")

    async with running(folder, loads(ScriptedEngine(echo, before_step=fail))) as worker:
        answer = await worker.client.post(
            "/v1/completions", json={"prompt": "hello", "stream": True}, headers={HEADER_TRACK: "1"}
        )
    last = parts(answer.text)[-1]
    assert (last.tracked.choice, last.tracked.lines) == (NO_CHOICE, 1)
    assert last.tracked.usage
    assert last.tracked.usage.completion == 2
