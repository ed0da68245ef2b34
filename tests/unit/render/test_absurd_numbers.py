"""Numbers that are valid and mean nothing, in everything that is shown: some text comes out, and no error."""

from __future__ import annotations

import io
from typing import Any

import pytest

from rbee.base.events import Notice, Phase, PhaseDone, PhaseStarted, Progress, Retry
from rbee.cli.hive import hives_table
from rbee.cli.models import models_table
from rbee.cli.workers import health_table, worker_record, workers_table
from rbee.fleet.models import Listed
from rbee.inventory import Node
from rbee.node.session import PerNode
from rbee.render import make_renderer
from rbee.render.terminal import TerminalRenderer
from rbee_remote.protocol import HiveInfo, ModelInfo, WorkerInfo, WorkerStatus, decode
from tests.hostile import MESSAGES, leaves, replaced
from tests.testbed.node import wait_until

NODE = Node(name="gpu1", host="192.0.2.1")
NUMBERS = (0, -1, 2**63 - 1, -(2**63) + 1, 1e308, -1e308, 5e-324)


def variants(message: Any) -> list[Any]:
    """The message with each number in it replaced by each of NUMBERS."""
    found = []
    for path in leaves(message):
        value: Any = message
        for key in path:
            value = value[key]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found += [replaced(message, path, number) for number in NUMBERS if isinstance(number, type(value))]
    return found


def shown(table: Any) -> str:
    out = io.StringIO()
    with make_renderer(stdout=out, stderr=io.StringIO()) as renderer:
        renderer.table(table)
    with make_renderer(json=True, stdout=out, stderr=io.StringIO()) as renderer:
        renderer.table(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "table"),
    [
        ("worker", WorkerInfo, lambda value: workers_table([PerNode(NODE, [value])])),
        ("model", ModelInfo, lambda value: models_table([PerNode(NODE, Listed([value]))])),
        ("hive", HiveInfo, lambda value: hives_table([PerNode(NODE, value)])),
    ],
)
def test_tables(name: str, kind: Any, table: Any) -> None:
    for message in variants(MESSAGES[name]):
        value = decode(kind, message)
        assert "gpu1" in shown(table(value))
        if isinstance(value, WorkerInfo):
            assert worker_record("gpu1", value)["id"] == value.id


def test_health() -> None:
    worker = decode(WorkerInfo, MESSAGES["worker"])
    for message in variants(MESSAGES["status"]):
        status = decode(WorkerStatus, message)
        assert "gpu1" in shown(health_table([PerNode(NODE, [(worker, status)])]))


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is 10**308 times as long as it is, or goes backwards."""
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal() if terminal else io.StringIO()
    renderer = make_renderer(stdout=io.StringIO(), stderr=err)
    assert isinstance(renderer, TerminalRenderer) == terminal
    with renderer:
        renderer(PhaseStarted(Phase.READY, "loading"))
        renderer(Progress("first", "step", 0.0, None))
        if isinstance(renderer, TerminalRenderer):
            wait_until(lambda: "loading" in err.getvalue(), 20, err.getvalue)
        for unit in ("bytes", "steps", "percent"):
            for done in (0.0, -1.0, 1e308):
                for total in (None, 0.0, -1.0, 5e-324, 1e308):
                    renderer(Progress(f"{unit} {done} {total}", "step", done, total, unit))
        renderer(Retry("x", 2**62, 2**62, "why", 1e308))
        renderer(Notice("done"))
        renderer(PhaseDone(Phase.READY, "loaded", 1e308))
    assert "done" in err.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
