"""When a hive is replaced: where it is of an older rbee, and where its llama.cpp is not the one that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from rbee.base.errors import NodeError
from rbee.base.events import Event, Notice
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup import attach
from rbee.setup.bootstrap import Ready
from rbee_remote.protocol import PROTOCOL, VERSION, ErrorCode, HiveInfo, Lease, StopRequest
from tests.unit.cleanup.gc_samples import hive as hive_info
from tests.unit.cleanup.gc_samples import worker

CPU, CUDA = "c" * 16, "9" * 16
READY = Ready(f"/home/bee/.rbee/node/runtimes/{CUDA}/bin/python", "/p.zip", "d" * 16, "cuda")
OURS = hive_info(protocol=PROTOCOL, version=VERSION, payload=READY.digest, runtime=CUDA)
FOUND = Probe(system="Linux", home="/home/bee/.rbee/node", run_dir="/run/bee", hive_socket_present=True)


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (OURS, ""),
        (replace(OURS, runtime=CPU), "the hive, which has another llama.cpp than the one for cuda"),
        (replace(OURS, runtime=""), ""),
        (replace(OURS, payload="e" * 16), f"the hive of rbee {VERSION}"),
        (replace(OURS, payload="e" * 16, version="0.0.1"), "the hive of rbee 0.0.1"),
        (replace(OURS, payload="e" * 16, version="999.0", runtime=CPU), ""),
    ],
)
def test_why_a_hive_is_replaced(info: HiveInfo, why: str) -> None:
    assert attach._why_replaced(info, READY) == why


def test_a_newer_protocol_is_refused_whatever_it_runs_with() -> None:
    with pytest.raises(NodeError) as caught:
        attach._why_replaced(replace(OURS, protocol=PROTOCOL + 1, runtime=CPU), READY)
    assert caught.value.code is ErrorCode.VERSION_MISMATCH


@dataclass
class Hive:
    """What a keeper asks of one."""

    info: HiveInfo
    keeper: str = ""
    stopped: list[StopRequest] = field(default_factory=list)

    async def health_or_none(self) -> HiveInfo:
        return self.info

    async def workers(self) -> list[Any]:
        return [worker(Lease(self.keeper, 60.0))] if self.keeper else []

    async def stop(self, request: StopRequest) -> None:
        self.stopped.append(request)


class Session:
    """Of the keeper "me" with a node that has `hive`."""

    def __init__(self, hive: Hive) -> None:
        self.events: list[Event] = []
        self.context = type("Context", (), {"keeper_id": "me"})()
        self.node = type("Node", (), {"name": "gpu1"})()
        self.connection = None
        self.emit = self.events.append
        self._hive = hive

    def hive_at(self, _: str) -> Hive:
        return self._hive


async def current(hive: Hive, monkeypatch: pytest.MonkeyPatch) -> tuple[HiveInfo, list[Event]]:
    """The hive that a command goes on with."""

    async def start(*_: object) -> HiveInfo:
        return replace(OURS, instance="2" * 16)

    monkeypatch.setattr(attach, "_start_hive", start)
    session = Session(hive)
    _, info = await attach._current_hive(cast("NodeSession", session), FOUND, READY)
    return info, session.events


@pytest.mark.parametrize("keeper", ["", "me"])
async def test_a_hive_with_the_processors_llama_cpp_makes_place_for_the_gpus(
    keeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hive = Hive(replace(OURS, runtime=CPU), keeper)
    info, events = await current(hive, monkeypatch)
    assert info.instance == "2" * 16
    assert hive.stopped == [StopRequest(drain=True)]
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "replacing the hive, which has another llama.cpp than the one for cuda (its workers finish what they do first)"
    ]


async def test_it_stays_while_another_keeper_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hive = Hive(replace(OURS, runtime=CPU), "another")
    info, events = await current(hive, monkeypatch)
    assert (info, hive.stopped) == (hive.info, [])
    said = "another keeper's worker runs in the hive, which has another llama.cpp than the one for cuda"
    assert [event.text for event in events if isinstance(event, Notice)] == [f"{said}: that hive stays for now"]
