"""Messages survive the way over the socket, and nothing misshapen gets in."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.protocol import (
    DownloadRequest,
    ErrorCode,
    GenerateRequest,
    Message,
    ProtocolError,
    RemoteError,
    Sampling,
    Source,
    SpawnRequest,
    Started,
    WorkerInfo,
    WorkerState,
    decode,
    encode,
    parse_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)

WORKER = WorkerInfo(
    id="0123456789abcdef",
    model="smollm2:135m",
    state=WorkerState.IDLE,
    backend="cpu",
    device="cpu",
    socket="/tmp/rbee-1000/x/worker.sock",
    pid=7,
    start_ticks=8,
    boot_id="b",
    ctx=4096,
    slots=1,
    slots_free=1,
    keep_alive_s=300.0,
    created_at=1.5,
)


@pytest.mark.parametrize(
    "message",
    [
        WORKER,
        SpawnRequest(model="m", env={"A": "b"}),
        DownloadRequest(model="m", sources=(Source("hf", repo="a/b"), Source("https", url="https://x")), size=3),
        GenerateRequest(request_id="0" * 32, messages=(Message("user", "hi"),), sampling=Sampling(seed=1), stop=("x",)),
    ],
)
def test_round_trip_through_json(message: Any) -> None:
    assert decode(type(message), json.loads(json.dumps(encode(message)))) == message


@given(text=st.text(), tokens=st.none() | st.integers(0, 10**6), stop=st.lists(st.text(), max_size=3))
def test_round_trip_of_any_text(text: str, tokens: int | None, stop: list[str]) -> None:
    message = GenerateRequest(request_id="0" * 32, prompt=text, max_tokens=tokens, stop=tuple(stop))
    assert decode(GenerateRequest, json.loads(json.dumps(encode(message)))) == message


@given(JSON)
def test_whatever_comes_in_is_a_message_or_a_protocol_error(data: Any) -> None:
    for cls in (WorkerInfo, GenerateRequest, SpawnRequest):
        try:
            assert isinstance(decode(cls, data), cls)
        except ProtocolError as error:
            assert cls.__name__ in str(error)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pid", "7", "WorkerInfo.pid: expected int, got str"),
        ("pid", True, "WorkerInfo.pid: expected int, got bool"),
        ("model", None, "WorkerInfo.model: expected str, got NoneType"),
        ("state", "asleep", "WorkerInfo.state: 'asleep' is none of"),
        ("created_at", [], "WorkerInfo.created_at: expected float, got list"),
    ],
)
def test_an_error_names_the_field(field: str, value: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=message.replace(".", r"\.")):
        decode(WorkerInfo, {**encode(WORKER), field: value})


def test_a_missing_field_is_named_and_an_unknown_one_ignored() -> None:
    data = encode(WORKER)
    assert decode(WorkerInfo, {**data, "from_the_future": 1}) == WORKER
    del data["socket"]
    with pytest.raises(ProtocolError, match=r"WorkerInfo\.socket: missing"):
        decode(WorkerInfo, data)


def test_integers_are_taken_for_floats() -> None:
    assert decode(WorkerInfo, {**encode(WORKER), "created_at": 3}).created_at == 3.0


def test_remote_error_round_trip() -> None:
    error = RemoteError(ErrorCode.RAM_EXHAUSTED, "too big", hint="smaller", details={"needed_mb": 5})
    back = RemoteError.decode(json.loads(json.dumps(error.encode())))
    assert (back.code, back.message, back.hint, back.details) == (error.code, "too big", "smaller", {"needed_mb": 5})


@given(JSON)
def test_remote_error_decodes_anything(data: Any) -> None:
    assert RemoteError.decode(data).code in ErrorCode
    assert isinstance(RemoteError.decode({"error": data}).details, dict)


def test_a_token_is_not_in_the_repr() -> None:
    request = DownloadRequest(model="m", sources=(), token="hf_canary")
    assert "hf_canary" not in repr(request)
    assert dataclasses.asdict(request)["token"] == "hf_canary"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"1e999",
        b"9223372036854775808",
        b'"\\ud800"',
        b'{"\\udc00": 1}',
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000,
        b"1" * 10_000,
    ],
    ids=repr,
)
def test_what_is_no_json_of_ours(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        parse_json(text)


def test_json_is_read_as_it_was_meant() -> None:
    text = '{"a": [1, -2.5, true, null, "\\ud83d\\ude00 é"], "b": {"c": 9223372036854775807}}'
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    assert parse_json("[" * 64 + "]" * 64)


def test_a_name_twice_is_an_error_where_that_is_asked() -> None:
    text = '{"a": {"b": 1, "b": 2}}'
    assert parse_json(text) == {"a": {"b": 2}}
    with pytest.raises(ProtocolError, match="'b' twice"):
        parse_json(text, unique=True)
    assert parse_json('{"a": {"b": 1}, "b": 2}', unique=True) == {"a": {"b": 1}, "b": 2}


def test_a_whole_number_has_64_bits() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        decode(Started, {"prompt_tokens": 1, "max_tokens": 2**63, "seed": 1})
