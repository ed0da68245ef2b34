"""What a model's keys tell of its memory beside the weights: the width of its KV cache, windows, recurrent states.

Pure. What is not known here is taken for plain attention over the whole context, which needs the most.
References are to llama.cpp: src/llama-model.cpp (load_hparams), src/llama-hparams.cpp and src/models/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: How many layers make one period of windowed layers and a full one, where the file does not say (load_swa_pattern).
_PERIODS = {
    "afmoe": 4,
    "cohere2": 4,
    "cohere2moe": 4,
    "exaone-moe": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "mellum": 4,
    "olmo2": 4,
    "plamo3": 8,
    "smallthinker": 4,
}
#: Their first layer is the full one; with the others it is the last.
_FULL_FIRST = {"cohere2moe", "smallthinker"}
#: These have their pattern of windows in the file, or keep it there for others to read: llama.cpp does as it says.
_WITH_PATTERN = {*_PERIODS, "gemma4", "granite-swa", "maple", "mimo2", "step35"}
#: More layers than any model has (LLAMA_MAX_LAYERS is 512): nothing is summed up over what a file only claims.
_MOST_LAYERS = 4096

Number = Callable[..., int]


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Fields as in ModelMeta."""

    kv_per_token: int = 0
    kv_per_token_swa: int = 0
    n_swa: int = 0
    state_per_slot: int = 0


def cache_shape(architecture: str, values: Mapping[str, Any], number: Number) -> CacheShape:
    """values: of the file's keys. number: the whole number under a key without the architecture's name, checked;
    (key, default, least=…). Raises ValueError for a number that cannot be."""
    n_layers = number("block_count")
    if n_layers > _MOST_LAYERS:
        return CacheShape()

    def per_layer(key: str, default: int) -> list[int]:
        found = values.get(f"{architecture}.{key}")
        if isinstance(found, list) and len(found) == n_layers and all(type(item) in (int, bool) for item in found):
            return [max(0, int(item)) for item in found]
        return [number(key, default, least=0)] * n_layers

    n_head = number("attention.head_count", 1, least=0)
    heads = per_layer("attention.head_count_kv", n_head)
    with_cache = _layers_with_cache(n_layers, number)
    windowed = _windowed(architecture, values, n_layers)
    n_swa = number("attention.sliding_window", 0, least=0) if any(windowed) else 0
    head_dim = number("embedding_length") // max(n_head, 1)
    full = _head_values(values, architecture, number, "", head_dim)
    window = _head_values(values, architecture, number, "_swa", full)
    kept = [(count, bool(n_swa) and swa) for count, swa, has in zip(heads, windowed, with_cache, strict=True) if has]
    recurrent = sum(1 for count in heads if count == 0) or n_layers
    return CacheShape(
        kv_per_token=sum(count * full for count, swa in kept if not swa),
        kv_per_token_swa=sum(count * window for count, swa in kept if swa),
        n_swa=n_swa,
        state_per_slot=recurrent * _state_values(number),
    )


def _head_values(values: Mapping[str, Any], architecture: str, number: Number, suffix: str, default: int) -> int:
    """Values that one head keeps of a token: its key and its value. With latent attention (MLA) the key holds both."""
    if not suffix:
        key = number("attention.key_length", default, least=0)
        if f"{architecture}.attention.key_length_mla" in values:
            return key
        return key + number("attention.value_length", default, least=0)
    half = default // 2
    of_window = number(f"attention.key_length{suffix}", half, least=0)
    return of_window + number(f"attention.value_length{suffix}", default - half, least=0)


def _layers_with_cache(n_layers: int, number: Number) -> list[bool]:
    """Layers that attend and have a cache of their own: not linear ones, and not those that share another's."""
    interval = number("full_attention_interval", 0, least=0)
    own = n_layers - number("attention.shared_kv_layers", 0, least=0)
    return [layer < own and (not interval or (layer + 1) % interval == 0) for layer in range(n_layers)]


def _windowed(architecture: str, values: Mapping[str, Any], n_layers: int) -> list[bool]:
    """Which layers see a window only."""
    pattern = values.get(f"{architecture}.attention.sliding_window_pattern")
    if architecture not in _WITH_PATTERN:
        return [False] * n_layers
    if isinstance(pattern, list):
        return [bool(item) for item in pattern] if len(pattern) == n_layers else [False] * n_layers
    period = pattern if type(pattern) is int and pattern > 0 else _PERIODS.get(architecture)
    if period is None:
        return [False] * n_layers
    full = 0 if architecture in _FULL_FIRST else period - 1
    return [layer % period != full for layer in range(n_layers)]


def _state_values(number: Number) -> int:
    """Of one recurrent layer and sequence: llama_hparams::n_embd_r and n_embd_s."""
    n_embd = number("embedding_length")
    if head_size := number("wkv.head_size", 0, least=0):
        return n_embd * (number("token_shift_count", 2, least=0) + head_size)
    if l_cache := number("shortconv.l_cache", 0, least=0):
        return n_embd * (l_cache - 1)
    inner, state = number("ssm.inner_size", 0, least=0), number("ssm.state_size", 0, least=0)
    convolution = max(0, number("ssm.conv_kernel", 0, least=0) - 1)
    return convolution * (inner + 2 * number("ssm.group_count", 0, least=0) * state) + state * inner
