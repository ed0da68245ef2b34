"""Nodes and workers, as values, for the tests of what is shown."""

from __future__ import annotations

from rbee.top.model import Fleet, GatewayRow, GpuRow, NodeRow, NodeState, Waiting, WorkerRow

HISTORY = tuple(float(second % 7) for second in range(60))


def worker(node: str = "gpu1", worker_id: str = "a" * 16, **more: object) -> WorkerRow:
    values: dict[str, object] = {
        "node": node, "id": worker_id, "model": "smollm2:135m", "state": "busy", "device": "NVIDIA H100",
        "slots": 4, "running": 3, "queued": 2, "rate": 145.23, "history": HISTORY, "first_token_s": 0.213,
        "ctx": 4096, "rss_mb": 1234,
    }  # fmt: skip
    return WorkerRow(**(values | more))  # type: ignore[arg-type]


def node(name: str = "gpu1", *workers: WorkerRow, **more: object) -> NodeRow:
    values: dict[str, object] = {
        "name": name, "state": NodeState.UP, "tags": ("cuda",), "cores": 16, "cpu": 0.12,
        "ram_total_mb": 64_000, "ram_used_mb": 9_100, "workers": workers,
        "rate": sum(each.rate for each in workers), "history": HISTORY if workers else (),
    }  # fmt: skip
    return NodeRow(**(values | more))  # type: ignore[arg-type]


GPU = GpuRow("NVIDIA H100 80GB HBM3", 85_520, 31_200, 0.63)
DOWN = node("bastion2", state=NodeState.DOWN, why="cannot be reached (no answer for 10 s)", retry_s=8.4, cpu=None)
FLEET = Fleet(
    (
        node("gpu1", worker("gpu1"), worker("gpu1", "b" * 16, state="idle", running=0, queued=0, rate=0.0, idle_s=75.0),
             gpus=(GPU,)),
        node("local", state=NodeState.NO_HIVE, cpu=None),
        DOWN,
    ),
    GatewayRow(5, (Waiting("smollm2:135m", "alice", 2, 3.2), Waiting("qwen3:8b", "", 1, 1.0))),
    HISTORY,
)  # fmt: skip
