"""What keys of a GGUF file say of the KV cache: windows, shared and linear layers, recurrent states."""

from __future__ import annotations

from typing import Any

import pytest

from rbee_remote.gguf.memory import CacheShape, cache_shape


def shape(architecture: str, **keys: Any) -> CacheShape:
    """keys: `attention_head_count` is attention.head_count, as below."""
    values = {f"{architecture}.{NAMES[name]}": value for name, value in keys.items()}

    def number(key: str, default: int | None = None, *, least: int = 1) -> int:
        found = values.get(f"{architecture}.{key}", default)
        assert found is not None, key
        assert isinstance(found, list) or found >= least
        return int(max(found) if isinstance(found, list) else found)

    return cache_shape(architecture, values, number)


NAMES = {
    "layers": "block_count",
    "embd": "embedding_length",
    "heads": "attention.head_count",
    "heads_kv": "attention.head_count_kv",
    "k": "attention.key_length",
    "v": "attention.value_length",
    "k_mla": "attention.key_length_mla",
    "k_swa": "attention.key_length_swa",
    "v_swa": "attention.value_length_swa",
    "window": "attention.sliding_window",
    "pattern": "attention.sliding_window_pattern",
    "shared": "attention.shared_kv_layers",
    "interval": "full_attention_interval",
    "conv": "ssm.conv_kernel",
    "inner": "ssm.inner_size",
    "state": "ssm.state_size",
    "groups": "ssm.group_count",
    "l_cache": "shortconv.l_cache",
    "head_size": "wkv.head_size",
}
PLAIN = {"layers": 6, "embd": 64, "heads": 4, "heads_kv": 2}


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("llama", PLAIN, CacheShape(6 * 2 * 32)),
        ("llama", {**PLAIN, "k": 8, "v": 24}, CacheShape(6 * 2 * 32)),
        ("llama", {"layers": 2, "embd": 64, "heads": 4}, CacheShape(2 * 4 * 32)),
        ("openelm", {**PLAIN, "layers": 3, "heads_kv": [1, 2, 4]}, CacheShape(7 * 32)),
        ("deepseek2", {**PLAIN, "heads_kv": 1, "k": 576, "v": 512, "k_mla": 192}, CacheShape(6 * 576)),
        # Windows count only where llama.cpp makes use of them.
        ("llama", {**PLAIN, "window": 100}, CacheShape(6 * 64)),
        ("phi3", {**PLAIN, "window": 100}, CacheShape(6 * 64)),
        ("gemma3", {**PLAIN, "window": 100}, CacheShape(64, 5 * 64, 100)),
        ("gemma3", PLAIN, CacheShape(6 * 64)),
        ("gemma2", {**PLAIN, "window": 100}, CacheShape(3 * 64, 3 * 64, 100)),
        ("gpt-oss", {**PLAIN, "window": 128, "pattern": 3}, CacheShape(2 * 64, 4 * 64, 128)),
        ("gemma4", {**PLAIN, "window": 9, "pattern": [1, 1, 0, 1, 1, 0]}, CacheShape(2 * 64, 4 * 64, 9)),
        (
            "gemma4",
            {**PLAIN, "window": 9, "pattern": [1, 1, 0, 1, 1, 0], "shared": 2, "k_swa": 8, "v_swa": 8},
            CacheShape(64, 3 * 2 * 16, 9),
        ),
        ("gemma3", {**PLAIN, "window": 9, "pattern": [1, 0]}, CacheShape(6 * 64)),
        # Linear attention: every third layer has a cache.
        ("qwen3next", {**PLAIN, "interval": 3}, CacheShape(2 * 64)),
        # Recurrent states: of the layers without heads, or of all.
        ("jamba", {**PLAIN, "heads_kv": [0, 0, 2, 0, 0, 2], "conv": 4, "inner": 10, "state": 8},
         CacheShape(2 * 64, state_per_slot=4 * (3 * 10 + 8 * 10))),
        ("mamba2", {"layers": 2, "embd": 64, "heads": 0, "conv": 4, "inner": 10, "state": 8, "groups": 1},
         CacheShape(state_per_slot=2 * (3 * (10 + 16) + 80))),
        ("lfm2", {**PLAIN, "heads_kv": [0, 0, 2, 0, 0, 2], "l_cache": 3},
         CacheShape(2 * 64, state_per_slot=4 * 2 * 64)),
        ("rwkv6", {"layers": 2, "embd": 64, "heads": 0, "head_size": 16}, CacheShape(state_per_slot=2 * 64 * 18)),
        # What no model has is not summed up.
        ("llama", {**PLAIN, "layers": 2**31}, CacheShape()),
    ],
)  # fmt: skip
def test_what_the_keys_say_of_the_cache(architecture: str, keys: dict[str, Any], expected: CacheShape) -> None:
    assert shape(architecture, **keys) == expected
