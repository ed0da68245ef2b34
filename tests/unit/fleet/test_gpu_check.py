"""`rbee nodes check` where a node does not tell of its GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.fleet import nodes
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee_remote.protocol import ErrorCode, GpuReport

LINUX = Probe(system="Linux", home="/h")
SESSION = cast("NodeSession", SimpleNamespace(connection=None))


@pytest.mark.parametrize(
    ("probe", "error", "reason"),
    [
        (LINUX, ConnectError(ErrorCode.CONNECTION_TIMEOUT, "30 s"), "timeout"),
        (LINUX, NodeError(ErrorCode.BOOTSTRAP_FAILED, "it died"), "unknown"),
        (LINUX, NodeError(ErrorCode.NODE_UNSUPPORTED, "no Python"), None),
        (Probe(system="Darwin", home="/h"), None, None),
        (Probe(system="Linux", home="/h", home_problem="others can write"), None, None),
    ],
)
async def test_the_rest_of_the_check_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, probe: Probe, error: RbeeError | None, reason: str | None
) -> None:
    async def gpus(*_: Any) -> GpuReport:
        assert error is not None, "it was asked"
        raise error

    monkeypatch.setattr(nodes, "gpus", gpus)
    report = await nodes._gpus(SESSION, probe)
    assert (report.reason if report else None) == reason
