"""How a model is to be loaded: what a request says goes before what the inventory says of the node."""

from __future__ import annotations

from rbee.infer.request import InferRequest
from rbee.inventory import Node
from rbee.inventory.schema import AUTO_LAYERS
from rbee_remote.protocol import WorkerOptions

#: Options that a request may set beside the node's: only the hive can say whether a worker has them.
_ONLY_THE_HIVE_KNOWS = ("kv_type", "flash_attention", "devices", "tensor_split", "gpu_layers")


def worker_options(request: InferRequest, node: Node) -> WorkerOptions:
    chosen: dict[str, object] = {}
    for name in ("ctx", "slots", *_ONLY_THE_HIVE_KNOWS):
        asked = getattr(request, name)
        value = getattr(node, name) if asked is None else asked
        if value is not None:
            chosen[name] = None if value == AUTO_LAYERS and name == "gpu_layers" else value
    return WorkerOptions(backend=node.backend, **chosen)  # type: ignore[arg-type]  # the fields have the same types


def is_for_the_hive(request: InferRequest) -> bool:
    """Whether the registry cannot tell which worker does what the request asks."""
    return request.ctx == 0 or any(getattr(request, name) is not None for name in _ONLY_THE_HIVE_KNOWS)
