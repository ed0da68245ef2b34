"""LoRA adapters for the models of `tiny_models`, and the same models with an adapter's change in their weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests import tiny_models

RANK, ALPHA = 4, 8.0
_CHANGED = ("attn_q", "attn_v", "attn_output")


def write(path: Path, seed: int, *, architecture: str = "llama", width: int = tiny_models.WIDTH) -> Path:
    """An adapter of random weights for the model of that architecture. The same file each time."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, (a, b) in _weights(seed, width).items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    _finish(writer)
    return path


def write_merged(path: Path, model: Path, changes: dict[int, float]) -> Path:
    """The llama model of `tiny_models`, with the adapters of these seeds in its weights, by their scales."""
    reader = gguf.GGUFReader(str(model))
    weights = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for seed, scale in changes.items():
        for name, (a, b) in _weights(seed, tiny_models.WIDTH).items():
            weights[name] = (weights[name] + scale * ALPHA / RANK * (b @ a)).astype(np.float32)
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            of_items = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], of_items)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    _finish(writer)
    return path


def _weights(seed: int, width: int) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return random.normal(0, 0.25, shape).astype(np.float32)

    names = [f"blk.{layer}.{name}.weight" for layer in range(tiny_models.LAYERS) for name in _CHANGED]
    return {name: (matrix(RANK, width), matrix(width, RANK)) for name in names}


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
