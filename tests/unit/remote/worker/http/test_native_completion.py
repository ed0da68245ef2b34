"""llama-server's own completions, as a worker answers them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.doubles.engine import loads
from tests.unit.remote.worker.http.cutting import cut, joined, lines_of, tokens_of, tracked
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.http.test_openai import says


async def streamed(client: httpx.AsyncClient, **values: Any) -> list[dict[str, Any]]:
    answer = await client.post("/completion", json={"prompt": "abc", "stream": True, **values})
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: ")]


async def test_a_whole_answer_and_a_stream_say_the_same(folder: Path) -> None:
    async with running(folder, loads(says("hé\nllo"))) as worker:
        whole = (await worker.client.post("/completion", json={"prompt": "abc", "return_tokens": True})).json()
        *pieces, last = await streamed(worker.client)
        back = (await worker.client.post("/detokenize", json={"tokens": whole["tokens"]})).json()
    assert (whole["content"], whole["stop"], whole["stop_type"]) == ("hé\nllo", True, "eos")
    assert (whole["tokens_predicted"], whole["has_new_line"], whole["truncated"]) == (7, True, False)
    assert whole["tokens_evaluated"] == whole["timings"]["prompt_n"] + whole["timings"]["cache_n"] == 4
    assert (whole["prompt"], whole["model"]) == ("abc", "m")
    assert back == {"content": "hé\nllo"}, "the token that ends it is not among them"
    assert "".join(piece["content"] for piece in pieces) == "hé\nllo"
    assert [token for piece in pieces for token in piece["tokens"]] == whole["tokens"]
    assert {piece["stop"] for piece in pieces} == {False}
    assert {**last, "content": whole["content"], "tokens": whole["tokens"], "timings": 0} == {**whole, "timings": 0}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"n_predict": 2}, {"content": "ab", "stop_type": "limit", "truncated": False, "stopping_word": ""}),
        ({"stop": ["cd"]}, {"content": "ab", "stop_type": "word", "truncated": False, "stopping_word": "cd"}),
        ({"prompt": "x" * 60}, {"content": "abc", "stop_type": "limit", "truncated": True, "stopping_word": ""}),
        ({"prompt": {"prompt_string": "y"}}, {"content": "abcdef", "prompt": "y"}),
        ({"prompt": [100, 101]}, {"content": "abcdef", "prompt": [100, 101], "tokens_evaluated": 2}),
        ({"prompt": [100, "a", 101]}, {"content": "abcdef", "tokens_evaluated": 3}),
        ({"prompt": ["a", 101]}, {"content": "abcdef", "tokens_evaluated": 3}),
        ({"tokens": True, "seed": 7, "ignore_eos": False}, {"content": "abcdef", "tokens": []}),
    ],
)
async def test_what_a_request_means(folder: Path, values: dict[str, Any], told: dict[str, Any]) -> None:
    async with running(folder, loads(says("abcdef"))) as worker:
        answer = (await worker.client.post("/v1/completion", json={"prompt": "x", **values})).json()
    assert {name: answer[name] for name in told} == told


async def test_several_prompts_are_a_list_and_one_alone_in_a_list_is_too(folder: Path) -> None:
    async with running(folder, loads(says("ab")), slots=2) as worker:
        many = (await worker.client.post("/completion", json={"prompt": ["x", [100], {"prompt_string": "z"}]})).json()
        one = (await worker.client.post("/completion", json={"prompt": ["x"], "n_cmpl": 2})).json()
        alone = (await worker.client.post("/completion", json={"prompt": ["x"]})).json()
    assert [(each["index"], each["content"]) for each in many] == [(0, "ab"), (1, "ab"), (2, "ab")]
    assert [each["prompt"] for each in many] == ["x", [100], "z"]
    assert len(one) == 2
    assert len(alone) == 1


async def test_probabilities_come_with_the_ids_of_their_tokens(folder: Path) -> None:
    body = {"prompt": "x", "n_probs": 2, "return_tokens": True}
    async with running(folder, loads(says("ab"))) as worker:
        whole = (await worker.client.post("/completion", json=body)).json()
        *pieces, _ = await streamed(worker.client, n_probs=2)
        refused = await worker.client.post("/completion", json={**body, "post_sampling_probs": True})
    told = whole["completion_probabilities"]
    assert [each["id"] for each in told] == whole["tokens"]
    assert [(each["token"], len(each["top_logprobs"])) for each in told] == [("a", 2), ("b", 2)]
    assert [piece["completion_probabilities"] for piece in pieces] == [[each] for each in told]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "post_sampling_probs")


async def test_only_the_fields_that_were_asked_for_are_told(folder: Path) -> None:
    fields = ["content", "generation_settings/n_predict", "nothing/there"]
    async with running(folder, loads(says("ab"))) as worker:
        answer = await worker.client.post(
            "/completion", json={"prompt": "x", "n_predict": 9, "response_fields": fields}
        )
    assert answer.json() == {"content": "ab", "generation_settings/n_predict": 9}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": [[1, None]]}, "prompt"),
        ({"prompt": [1, "a", None]}, "prompt[2]"),
        ({"prompt": {"nothing": 1}}, "prompt"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["AA=="]}}, "prompt.multimodal_data"),
        ({"prompt": [1, "\ud800"]}, "prompt[1]"),
        ({"n_probs": 99}, "n_probs"),
        ({"prompt": ["x"] * 99}, "prompt"),
        ({"n_cmpl": 0}, "n_cmpl"),
        ({"n": 99}, "n"),
    ],
)
async def test_what_cannot_be_served_names_the_field(folder: Path, values: dict[str, Any], field: str) -> None:
    async with running(folder, loads(says("a"))) as worker:
        answer = await worker.client.post("/completion", content=json.dumps({"prompt": "x", **values}))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


async def test_what_is_ignored_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rbee.worker")
    async with running(folder, loads(says("a"))) as worker:
        for _ in range(2):
            await worker.client.post("/completion", json={"prompt": "x", "id_slot": 0})
    told = [record.getMessage() for record in caplog.records if "id_slot" in record.getMessage()]
    assert told == ["/completion: the field id_slot is ignored"]


async def test_a_stream_can_be_followed_and_go_on_elsewhere(folder: Path) -> None:
    body = {"prompt": "abc", "seed": 7}
    async with running(folder, loads(says("abcd"))) as worker:
        told = await tracked(worker.client, "/completion", body)
        resume, kept = cut(told, lambda _, lines: min(lines, 2))
        rest = await tracked(worker.client, "/completion", body, resume)
    lines = lines_of(told)[0]
    assert joined(kept, rest)[0] == lines
    tokens = [token for line in lines for token in json.loads(line)["tokens"]]
    assert tokens_of(told)[0][:4] == tokens


async def test_what_llama_servers_clients_ask_of_the_model(folder: Path) -> None:
    async with running(folder, loads(says("a")), ctx=512, slots=3) as worker:
        props = (await worker.client.get("/props")).json()
    assert (props["total_slots"], props["model_path"], props["default_generation_settings"]["n_ctx"]) == (
        3,
        "/none",
        512,
    )
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert "message" in props["chat_template"]
