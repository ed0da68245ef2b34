"""Values that several tests of the gateway begin with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rbee.gateway.base.interfaces import Client, Ended
from rbee.gateway.base.views import NodeState, NodeView, WorkerKey, WorkerView
from rbee_remote.protocol import ModelInfo, ModelMeta, TrackedUsage, WorkerState

MODEL = "smollm2:135m"
META = ModelMeta("llama", 30, 2048, 576, 49152, 3, 64, 64)
WORKER = WorkerKey("gpu1", "3f9a3f9a3f9a3f9a")
CLIENT = Client("alice", "0123456789ab", address="10.0.0.9")


def ended(**values: Any) -> Ended:
    """A request that went well."""
    whole = Ended(
        request_id="5c1f",
        client=CLIENT,
        method="POST",
        path="/v1/chat/completions",
        status=200,
        asked="chat",
        model=MODEL,
        worker=WORKER,
        usage=TrackedUsage(100, 60, 11),
        seconds=1.5,
        first_s=0.5,
        queue_s=0.1,
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    return replace(whole, **values)


def worker(key: WorkerKey = WORKER, **values: Any) -> WorkerView:
    whole = WorkerView(key, MODEL, WorkerState.READY, ctx=4096, slots=4, slots_free=3, queued=2, in_flight=1)
    return replace(whole, **values)


def nodes(*models: str) -> tuple[NodeView, ...]:
    """gpu1, which has a worker, and gpu2, which is down and has the models."""
    catalog = {model: ModelInfo(model, "/m", 1, "a" * 64, True, "", 0.0, META) for model in models}
    return (
        NodeView("gpu1", NodeState.UP, workers=(worker(),)),
        NodeView("gpu2", NodeState.DOWN, models=catalog, reason="it does not answer"),
    )
