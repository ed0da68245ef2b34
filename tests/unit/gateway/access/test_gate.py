"""Who is let in, by a file of keys that changes meanwhile; and how much at once."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError, NodeError, RefusedError
from rbee.gateway.access.gate import REFUSALS_EVERY_S, KeyGate
from rbee.gateway.access.keys import ApiKey, add_key, hash_of, new_key, revoke_key
from rbee.gateway.base.interfaces import Client
from rbee.gateway.requests.errors import refusal_of
from rbee_remote.protocol import ErrorCode


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def add(path: Path, name: str = "alice", **limits: object) -> str:
    secret = new_key()
    add_key(path, ApiKey(name, hash_of(secret), **limits))  # type: ignore[arg-type]
    return secret


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refused(gate: KeyGate, headers: dict[str, str]) -> str:
    with pytest.raises(RefusedError) as error:
        gate.admit(headers, "10.0.0.9")
    assert error.value.code is ErrorCode.INVALID_API_KEY
    return error.value.message


def test_without_a_file_nobody_needs_a_key(path: Path) -> None:
    gate = KeyGate(path)
    assert not gate.needs_key
    assert gate.admit({}, "127.0.0.1") == Client(address="127.0.0.1")
    assert gate.admit(bearer("sk-whatever"), "") == Client()
    with gate.open(Client()), gate.open(Client()):
        pass


def test_a_key_is_known_by_either_header_and_no_other_is(path: Path) -> None:
    secret = add(path, models=frozenset({"m"}), priority="high")
    add(path, "bob")
    gate = KeyGate(path)
    expected = Client("alice", hash_of(secret)[:12], frozenset({"m"}), 1, "10.0.0.9")
    headers = [
        bearer(secret), {"authorization": f"bearer  {secret} "}, {"x-api-key": secret},
        {"authorization": "Basic abc", "x-api-key": secret},
    ]  # fmt: skip
    for each in headers:
        assert gate.admit(each, "10.0.0.9") == expected
    wrong = [{}, bearer(""), bearer("rbee-"), bearer(secret[:-1]), bearer(secret + "0"), bearer(hash_of(secret))]
    for each in [*wrong, bearer("ä\udcff" * 1000), {"authorization": secret}, {"x-api-key": secret.upper()}]:
        assert secret not in refused(gate, each)
    assert refused(gate, {}).startswith("no API key was given: send it as")
    assert refused(gate, bearer("x")) == "the gateway does not know this API key"


def test_a_call_over_a_socket_needs_a_key_as_well(path: Path) -> None:
    secret = add(path)
    gate = KeyGate(path)
    with pytest.raises(RefusedError):
        gate.admit({}, "")
    assert gate.admit(bearer(secret), "").key == "alice"


def closed(gate: KeyGate, headers: dict[str, str], path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        gate.admit(headers, "")
    assert f"its file of API keys, {path}, is missing or damaged" in error.value.message
    assert refusal_of(error.value).status == 503
    assert "retry-after" in {name.lower() for name in refusal_of(error.value).headers}


def test_the_file_is_followed_and_never_opens_the_gateway_again(path: Path) -> None:
    gate = KeyGate(path)
    alice = add(path)
    assert gate.needs_key
    assert gate.admit(bearer(alice), "").key == "alice"
    bob = add(path, "bob")
    client = gate.admit(bearer(bob), "")
    with gate.open(client):
        revoke_key(path, "bob")
        assert refused(gate, bearer(bob)) == "the gateway does not know this API key"
    assert gate.admit(bearer(alice), "").key == "alice"
    revoke_key(path, "alice")
    refused(gate, bearer(alice))
    path.unlink()
    closed(gate, bearer(alice), path)
    carol = add(path, "carol")
    assert gate.admit(bearer(carol), "").key == "carol"


def test_a_damaged_file_lets_nobody_in_until_it_is_mended(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = add(path)
    gate, good = KeyGate(path), path.read_bytes()
    path.write_bytes(good + b"\n[keys.b")
    closed(gate, bearer(secret), path)
    closed(gate, {}, path)
    path.chmod(0o644)
    path.write_bytes(good)
    closed(gate, bearer(secret), path)
    with pytest.raises(ConfigError, match="others can read it"):
        gate.check()
    assert [record.levelname for record in caplog.records].count("ERROR") >= 2
    path.chmod(0o600)
    gate.check()
    assert gate.admit(bearer(secret), "").key == "alice"


def test_so_many_requests_at_once_and_no_more(path: Path) -> None:
    gate = KeyGate(path)
    client = gate.admit(bearer(add(path, concurrency=2)), "")
    with ExitStack() as first:
        first.enter_context(gate.open(client))
        with gate.open(client):
            with pytest.raises(NodeError) as error, gate.open(client):
                pass
            assert error.value.code is ErrorCode.RATE_LIMITED
            assert error.value.details == {"retry_after_s": 1}
        with gate.open(client):
            pass
        with pytest.raises(ZeroDivisionError), gate.open(client):
            raise ZeroDivisionError
        with gate.open(client):
            pass


def test_so_many_requests_within_a_minute_and_no_more(path: Path) -> None:
    clock = Clock()
    gate = KeyGate(path, clock)
    client = gate.admit(bearer(add(path, rpm=3)), "")
    for _ in range(3):
        with gate.open(client):
            clock.now += 10
    for wait, after in ((30, 0), (1, 29.5)):
        clock.now += after
        with pytest.raises(NodeError) as error, gate.open(client):
            pass
        assert error.value.details == {"retry_after_s": wait}
    clock.now += 0.5
    with gate.open(client):
        pass
    with pytest.raises(NodeError), gate.open(client):
        pass


def test_ten_thousand_wrong_keys_cost_little_and_fill_no_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        add(path, f"key{number}")
    clock = Clock()
    gate = KeyGate(path, clock)
    caplog.clear()
    began = time.process_time()
    for number in range(10_000):
        with pytest.raises(RefusedError):
            gate.admit(bearer(f"rbee-{number}"), "10.0.0.9")
    assert time.process_time() - began < 3.0  # a third of a second on an idle machine
    assert [record.getMessage() for record in caplog.records] == [
        "requests refused for want of a valid API key: 1, the last from 10.0.0.9"
    ]
    clock.now += REFUSALS_EVERY_S
    refused(gate, {})
    assert caplog.records[-1].getMessage().startswith("requests refused for want of a valid API key: 10000, ")


async def test_the_last_refusals_are_told_as_well(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(path)
    clock = Clock()
    gate = KeyGate(path, clock)
    refused(gate, {})
    clock.now += REFUSALS_EVERY_S - 0.01
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        refused(gate, {})
        while not caplog.records:
            await asyncio.sleep(0.005)
    assert ": 1, the last" in caplog.records[0].getMessage()
