"""Digests of prompts: the same for bodies that mean the same, as many in common as the prompts have, and never an
error."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee_remote.protocol import GenerateRequest, Message, Sampling, encode
from rbee_remote.protocol.prompt_digest import BLOCK, GAP, MOST_TEXT, common_digests, prompt_digests
from tests.patience import PATIENCE_S

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("messages", "system", "tools", "input", "prompt", "tokens", "chat", "instructions", "chat_template", "n")
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(min_size=1, max_size=900)}
)
MESSAGES = st.lists(MESSAGE, max_size=5)


def long(text: str) -> str:
    return text * (2 * BLOCK)


def chat(*contents: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **fields}


@given(JSON | st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_json_a_body_is_it_has_digests(body: Any) -> None:
    digests = prompt_digests(body)
    assert all(len(digest) == 16 for digest in digests)
    assert prompt_digests(body) == digests


@given(MESSAGES, MESSAGES, MESSAGES)
def test_prompts_that_begin_alike_have_as_many_digests_in_common(
    start: list[Any], one: list[Any], other: list[Any]
) -> None:
    shared = prompt_digests({"messages": start})
    first, second = prompt_digests({"messages": start + one}), prompt_digests({"messages": start + other})
    assert common_digests(first, second) >= len(shared)
    assert first[: len(shared)] == second[: len(shared)] == shared


@given(MESSAGES, MESSAGES)
def test_digests_in_common_are_text_in_common(one: list[Any], other: list[Any]) -> None:
    texts = [
        "".join(json.dumps(each, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for each in messages)
        for messages in (one, other)
    ]
    first, second = (text.encode("utf-8") for text in texts)
    common = common_digests(prompt_digests({"messages": one}), prompt_digests({"messages": other}))
    assert first[: common * BLOCK] == second[: common * BLOCK]
    assert common == len(first) // BLOCK or first[: (common + 1) * BLOCK] != second[: (common + 1) * BLOCK]


@given(MESSAGES, st.dictionaries(st.sampled_from(["temperature", "seed", "max_tokens", "stream", "model", "n"]), JSON))
def test_order_empty_fields_and_sampling_make_no_difference(messages: list[Any], sampling: dict[str, Any]) -> None:
    padded = [
        {"name": None, "tool_calls": [], "refusal": "", **dict(reversed(message.items()))} for message in messages
    ]
    assert prompt_digests({**sampling, "messages": padded, "tools": []}) == prompt_digests({"messages": messages})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(long("a") + long("b")), chat([{"type": "text", "text": long(letter)} for letter in "ab"])),
        (chat(long("a")), chat([{"type": "text", "text": long("a"), "cache_control": {"type": "ephemeral"}}])),
        ({"system": long("a")}, {"system": [{"text": long("a"), "type": "text"}]}),
        ({"input": long("a")}, {"input": [long("a")]}),
        ({"prompt": [1, 2, 3] * BLOCK}, {"prompt": [1, 2, 3] * BLOCK, "echo": True}),
        (
            chat("a", tools={"functions": [long("f")]}),
            chat("a", tools={"functions": [long("f")], "choice": "required"}),
        ),
        (chat("a", thinking={"type": long("t"), "budget_tokens": 1}), chat("a", thinking={"type": long("t")})),
        (
            {"input": [{"type": "message", "role": "assistant", "content": long("a")}]},
            {
                "input": [
                    {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": long("a")}
                ]
            },
        ),
    ],
)
def test_bodies_that_mean_the_same_prompt_have_the_same_digests(one: Any, other: Any) -> None:
    assert prompt_digests(one) == prompt_digests(other) != ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat("\ud800" + long("a")), chat("?" + long("a"))),
        ({"prompt": [0] * BLOCK + [1] * BLOCK}, {"prompt": [1] * BLOCK}),
        (chat([{"type": "image_url", "image_url": {"url": "data:" + long("a")}}] * 9),
         chat([{"type": "image_url", "image_url": {"url": "data:" + long("b")}}] * 9)),
        (chat(long("a"), tools=[{"name": long("f")}]), chat(long("a"))),
        (chat(long("a"), enable_thinking=False), chat(long("a"))),
    ],
)  # fmt: skip
def test_other_prompts_have_other_digests(one: Any, other: Any) -> None:
    assert prompt_digests(one)
    assert common_digests(prompt_digests(one), prompt_digests(other)) == 0


def test_data_of_an_image_takes_no_place_of_the_text_behind_it() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2 * MOST_TEXT}}
    one, other = (prompt_digests(chat([image, {"type": "text", "text": long(letter)}])) for letter in "ab")
    assert one != other


def test_what_is_nested_too_deeply_ends_the_chain() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    plain = prompt_digests(chat(long("a")))
    assert prompt_digests(chat(long("a"), deep, long("b"))) == plain
    assert prompt_digests({"tools": deep, **chat(long("a"))}) == ()


def test_a_huge_body_has_a_bounded_chain() -> None:
    for body in (chat("x" * 2 * MOST_TEXT), {"prompt": [7] * 2 * MOST_TEXT}, chat(*["y" * MOST_TEXT] * 3)):
        assert len(prompt_digests(body)) == MOST_TEXT // BLOCK


def test_a_keepers_request_has_digests_of_its_prompt_alone() -> None:
    request = GenerateRequest("0" * 32, (Message("user", long("a")),), sampling=Sampling(seed=1))
    other = GenerateRequest("1" * 32, (Message("user", long("a")), Message("assistant", "b")), max_tokens=3)
    first, second = prompt_digests(encode(request)), prompt_digests(encode(other))
    assert common_digests(first, second) == len(first) > 1


def test_a_gap_is_matched_by_nothing_but_what_lies_behind_it_is() -> None:
    assert common_digests(("a", "b", "c"), (GAP, GAP, "c")) == 3
    assert common_digests(("a", "b"), (GAP, GAP, "c")) == 0
    assert common_digests(("a", "b", "x"), ("a", "b", "c", "d")) == 2
    assert common_digests((), ("a",)) == 0


def test_a_hundred_kilobytes_take_a_few_milliseconds() -> None:
    body = chat(*["some words of a chat, " * 50] * 100)
    started = time.perf_counter()
    assert len(prompt_digests(body)) > 400
    assert time.perf_counter() - started < PATIENCE_S  # it takes 1.2 ms, of which a loaded machine makes some more


@settings(max_examples=20)
@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=400), st.integers(0, 400))
def test_tokens_that_begin_alike_have_digests_in_common(tokens: list[int], count: int) -> None:
    start = prompt_digests({"prompt": tokens[:count]})
    assert common_digests(prompt_digests({"prompt": tokens}), start) >= len(start) - 1


def test_what_adapters_compute_is_another_prompt() -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"lora": []},
        {"lora": [{"id": 0, "scale": 0.5}]},
        {"lora": [{"id": 0, "scale": 1.0}]},
    ]
    chains = [prompt_digests(chat(long("a"), **body)) for body in bodies]
    assert len({chain[0] for chain in chains}) == len(bodies)
    assert prompt_digests(chat(long("a"), lora=None)) == chains[0]
