"""The names of `names`, for the inventory and the nodes as they are now; and /v1/models in OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rbee.gateway.base.interfaces import Client, Fleet
from rbee.gateway.routing import names
from rbee.gateway.routing.names import ModelEntry, Resolved
from rbee.inventory import Inventory
from rbee_remote.protocol.model_lists import model_context, model_head


class ModelNames:
    """inventory: the one that counts now."""

    def __init__(self, inventory: Callable[[], Inventory], fleet: Fleet) -> None:
        self._inventory = inventory
        self._fleet = fleet

    def resolve(self, model: str, client: Client) -> Resolved:
        """Raises NodeError MODEL_NOT_FOUND."""
        return names.resolve(model, self._inventory(), self._fleet.nodes, client.models)

    def listing(self, client: Client) -> list[dict[str, Any]]:
        return [_told(entry) for entry in names.listing(self._inventory(), self._fleet.nodes, client.models)]


def _told(entry: ModelEntry) -> dict[str, Any]:
    """`meta` with llama-server's names; what only a gateway knows beside them."""
    return {
        **model_head(entry.name, int(entry.added_at)),
        **model_context(entry.ctx),
        "root": entry.model,
        "meta": {"n_ctx": entry.ctx, "n_ctx_train": entry.trained_ctx, "size": entry.size},
        "quantization": entry.quantization,
        "capabilities": list(entry.capabilities),
        "nodes": list(entry.nodes),
        "loaded": list(entry.loaded),
    }
