"""What a model is made for, by the keys of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_remote.protocol.abilities import Use, use_of


def read_use(architecture: str, values: Mapping[str, Any]) -> Use:
    """values: of the file's keys, those that are known."""
    pooling = values.get(f"{architecture}.pooling_type")
    causal = values.get(f"{architecture}.attention.causal") is not False
    return use_of(architecture, pooling if type(pooling) is int else None, causal=causal)
