"""A model file of random weights: how fast a model is does not depend on what its weights say.

Rules
- The blocks are made as they are stored, quantised: nothing is computed in floats, and no more than one slice of a
  tensor is in memory.
- Vocabulary, merges and chat template are those of a real model, so that prompts become the tokens they would be there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.gpu.shape import BLOCK, BLOCK_BYTES, Shape, Tensor

Bytes = npt.NDArray[np.uint8]

#: Blocks that are made at once: some 30 MB.
_SLICE = 200_000
_ALIGNMENT = 32
#: Standard deviations of what a block stores, in its own steps: 4 bits around 7.5, 6 bits around 32.
_SPREAD = {"Q4_K": 4.61, "Q6_K": 18.47}
#: What is copied from the vocabulary's file beside the tokens themselves.
_COPIED = ("tokenizer.",)
_TOKENS, _KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def write(path: Path, shape: Shape, vocabulary: Path, seed: int = 1) -> Path:
    """Write the model; the same file for the same seed. vocabulary: a GGUF of an architecture like it."""
    writer = gguf.GGUFWriter(None, "qwen2")
    _describe(writer, shape)
    _copy_vocabulary(writer, gguf.GGUFReader(vocabulary), shape.vocabulary)
    tensors = list(shape.tensors())
    for tensor in tensors:
        _announce(writer, tensor)
    part = path.with_name(f"{path.name}.part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    (sink,) = writer.fout
    random = np.random.default_rng(seed)
    sink.write(bytes(-sink.tell() % _ALIGNMENT))
    for tensor in tensors:
        for piece in _pieces(tensor, random):
            piece.tofile(sink)
        sink.write(bytes(-tensor.bytes % _ALIGNMENT))
    writer.close()
    part.rename(path)
    return path


def endings(path: Path) -> tuple[int, ...]:
    """The tokens of a model that can end its answer: those that are no text."""
    kinds = gguf.GGUFReader(path).fields[_KINDS].contents()
    return tuple(token for token, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL)


def blocks(kind: str, count: int, inputs: int, random: np.random.Generator) -> Bytes:
    """`count` random blocks as rows of bytes, of weights around 0 that keep a vector of `inputs` as long as it is.

    A block_q4_K is d, dmin (f16), 12 bytes of scales and minima in 6 bits each, 128 of weights; here each scale and
    minimum is 1. A block_q6_K is 192 bytes of weights, 16 scales (int8) and d.
    """
    step = 1 / math.sqrt(inputs) / _SPREAD[kind]
    made = random.integers(0, 256, (count, BLOCK_BYTES[kind]), dtype=np.uint8)
    if kind == "Q4_K":
        made[:, :4] = _halves(step, 7.5 * step)
        made[:, 4:12], made[:, 12:16] = 1, 0x11
    else:
        made[:, 192:208] = 1
        made[:, 208:] = _halves(step)
    return made


def _halves(*values: float) -> Bytes:
    return np.frombuffer(np.array(values, dtype="<f2").tobytes(), dtype=np.uint8)


def _pieces(tensor: Tensor, random: np.random.Generator) -> Iterable[Bytes]:
    if tensor.kind == "F32":
        value = 1.0 if tensor.name.endswith("norm.weight") else 0.0
        return [np.full(tensor.shape, value, dtype="<f4").view(np.uint8)]
    whole = math.prod(tensor.shape) // BLOCK
    counts = (min(_SLICE, whole - at) for at in range(0, whole, _SLICE))
    return (blocks(tensor.kind, count, tensor.shape[-1], random) for count in counts)


def _announce(writer: gguf.GGUFWriter, tensor: Tensor) -> None:
    kind = gguf.GGMLQuantizationType[tensor.kind]
    if tensor.kind == "F32":
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes)
        return
    rows, inputs = tensor.shape
    stored = (rows, inputs // BLOCK * BLOCK_BYTES[tensor.kind])
    writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), tensor.bytes, raw_dtype=kind)


def _describe(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"random weights in the shape of {shape.name}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)


def _copy_vocabulary(writer: gguf.GGUFWriter, source: gguf.GGUFReader, size: int) -> None:
    """With tokens that nothing means up to `size`, as the real model has them."""
    for field in source.fields.values():
        if not field.name.startswith(_COPIED):
            continue
        values = field.contents()
        if field.name == _TOKENS:
            values = [*values, *(f"[PAD{number}]" for number in range(len(values), size))][:size]
        elif field.name == _KINDS:
            values = [*values, *[int(gguf.TokenType.UNUSED)] * (size - len(values))][:size]
        inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, values, field.types[0], inner)
