"""Filling in: the tokens of a prompt with a gap, and what a worker says of models that cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.worker.engine.interface import Fim
from rbee_remote.worker.http.llama_server.infill import Gap, prompt_tokens
from tests.doubles.engine import INFO, ScriptedEngine, loads
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.http.test_openai import says

FIM = Fim(prefix=1000, suffix=1001, middle=1002, repository=1003, file=1004)
BOS = [999]


def test_a_gap_stands_between_what_is_before_and_behind() -> None:
    gap = Gap(before=[1, 2], begun=[3], behind=[4, 5], extra=[6, 7])
    assert prompt_tokens(gap, FIM, BOS, room=100) == [6, 7, 999, 1000, 1, 2, 3, 1001, 4, 5, 1002]


def test_what_is_farthest_from_the_gap_is_left_out() -> None:
    gap = Gap(before=list(range(50)), begun=[90], behind=list(range(60, 80)), extra=[6, 7])
    assert prompt_tokens(gap, FIM, BOS, room=21) == [
        *[999, 1000, *range(38, 50), 90, 1001, *range(60, 64), 1002],
    ]


@given(*[st.integers(0, 60)] * 4, st.integers(0, 80))
def test_a_prompt_has_room_and_its_nearest_text(before: int, begun: int, behind: int, extra: int, room: int) -> None:
    gap = Gap(list(range(before)), list(range(begun)), list(range(100, 100 + behind)), list(range(extra)))
    tokens = prompt_tokens(gap, FIM, BOS, room)
    assert len(tokens) <= max(room, 4 + begun), "what is begun already stays"
    at, end = tokens.index(1001), len(tokens) - 1
    assert tokens[end] == 1002
    start = tokens.index(1000) + 1
    assert tokens[start:at] == [*gap.before[before - (at - start - begun) :], *gap.begun]
    assert tokens[at + 1 : end] == list(gap.behind[: end - at - 1])
    if room >= 4 + before + begun + behind + extra:
        assert len(tokens) == 4 + before + begun + behind + extra, "nothing is left out for which there is room"


def fills_in(text: str, **names: int) -> ScriptedEngine:
    fim = Fim(1, 2, 3, **names)
    return ScriptedEngine(lambda _: text.encode(), info=dataclasses.replace(INFO, fim=fim))


async def filled(client: httpx.AsyncClient, **values: Any) -> httpx.Response:
    return await client.post("/infill", json={"input_prefix": "ab", "input_suffix": "yz", "n_predict": 8, **values})


async def test_a_gap_is_filled_in(folder: Path) -> None:
    async with running(folder, loads(fills_in("mid"))) as worker:
        tokens = (await worker.client.post("/tokenize", json={"content": "abyz"})).json()["tokens"]
        answer = (await filled(worker.client, prompt="c")).json()
        more = (await filled(worker.client, input_extra=[{"text": "q"}])).json()
    assert answer["content"] == "mid"
    bos, *inner = answer["prompt"]
    assert inner[0] == 1
    assert inner[1:3] == tokens[:2]
    assert inner[4:] == [2, *tokens[2:], 3]
    assert bos not in tokens
    assert len(more["prompt"]) > len(answer["prompt"]) - 1


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 5}, "input_suffix"),
        ({"prompt": ["a"]}, "prompt"),
        ({"input_extra": [{}]}, "input_extra[0].text"),
        ({"input_extra": [{"filename": 123, "text": "a"}]}, "input_extra[0].filename"),
        ({"input_extra": [5]}, "input_extra[0]"),
        ({"n_predict": -9}, "n_predict"),
    ],
)
async def test_what_cannot_be_served_names_the_field(folder: Path, values: dict[str, Any], field: str) -> None:
    async with running(folder, loads(fills_in("mid"))) as worker:
        answer = await filled(worker.client, **values)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


async def test_a_model_that_cannot_fill_in_says_so(folder: Path) -> None:
    async with running(folder, loads(says("a"))) as worker:
        answer = await filled(worker.client)
    assert answer.status_code == 400
    assert "cannot fill in" in answer.json()["error"]["message"]
