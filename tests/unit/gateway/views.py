"""Nodes, workers and models as the gateway sees them, for its tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rbee.gateway.base.views import NodeState, NodeView, WorkerKey, WorkerView
from rbee_remote.protocol import ModelInfo, ModelMeta, WorkerState

MODEL = "smollm2:135m"
OTHER = "qwen2.5:0.5b"
SHA = "a" * 64


def model_info(model: str = MODEL, *, sha256: str = SHA, architecture: str = "llama", size: int = 10**8) -> ModelInfo:
    meta = ModelMeta(architecture, 30, 8192, 576, 49152, 3, 64, 64, quantization="Q8_0")
    return ModelInfo(model, f"/models/{model}", size, sha256, True, "", 1000.0, meta)


def worker_view(node: str, number: int = 1, **fields: Any) -> WorkerView:
    """One that serves and is idle, unless the fields say otherwise."""
    values: dict[str, Any] = {
        "model": MODEL, "state": WorkerState.IDLE, "ctx": 4096, "slots": 4, "sha256": SHA, "idle_s": 100.0
    } | fields  # fmt: skip
    values.setdefault("slots_free", values["slots"])
    return WorkerView(WorkerKey(node, f"{number:016x}"), **values)


def node_view(
    name: str, workers: Iterable[WorkerView] = (), *, models: Iterable[str] = (MODEL,), **fields: Any
) -> NodeView:
    values: dict[str, Any] = {"state": NodeState.UP} | fields
    return NodeView(name, workers=tuple(workers), models={each: model_info(each) for each in models}, **values)
