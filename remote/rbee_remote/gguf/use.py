"""What a model is made for, by the keys of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_remote.protocol.abilities import Use, use_of
from rbee_remote.protocol.load_options import LORA


def is_adapter(values: Mapping[str, Any]) -> bool:
    """Whether the file is a LoRA adapter, by the keys that llama.cpp asks for. Raises ValueError for one of another
    kind."""
    if values.get("general.type") != "adapter":
        return False
    if (kind := values.get("adapter.type")) != LORA:
        raise ValueError(f"it is an adapter of the type {str(kind)[:40]!r}, and LoRA alone is known")
    return True


def read_use(architecture: str, values: Mapping[str, Any]) -> Use:
    """values: of the file's keys, those that are known."""
    pooling = values.get(f"{architecture}.pooling_type")
    causal = values.get(f"{architecture}.attention.causal") is not False
    return use_of(architecture, pooling if type(pooling) is int else None, causal=causal)
