"""`GET /v1/models`, of a worker and of a gateway: one document for OpenAI's clients and for Anthropic's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


def model_list(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """models: as of `model_head`. There are no further pages."""
    ids = [model["id"] for model in models] or [None]
    return {"object": "list", "data": list(models), "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def model_head(name: str, created: int) -> dict[str, Any]:
    """What all say of a model. created: Unix seconds, 0 for unknown."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "rbee",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
    }


def model_context(ctx: int) -> dict[str, int]:
    """Its context by the names for which clients of other servers look: OpenRouter's and vLLM's, and Anthropic's
    libraries' own. Nothing where it is not known."""
    names = ("context_length", "max_model_len", "max_input_tokens")
    return dict.fromkeys(names, ctx) if ctx else {}
