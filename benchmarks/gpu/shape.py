"""The shape of a model: which tensors it has, how each is quantised, and how large it is. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

#: Weights in a block of a k-quant, and the bytes of one: QK_K, block_q4_K and block_q6_K in ggml-common.h.
BLOCK = 256
BLOCK_BYTES = {"Q4_K": 144, "Q6_K": 210}


@dataclass(frozen=True, slots=True)
class Tensor:
    """shape: as numpy has it, rows first. kind: F32, Q4_K or Q6_K."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def bytes(self) -> int:
        weights = math.prod(self.shape)
        return weights * 4 if self.kind == "F32" else weights // BLOCK * BLOCK_BYTES[self.kind]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of the architecture qwen2, quantised as Q4_K_M. width, inner: of a token's vector, and within the
    feed-forward; both whole blocks. context: tokens that the model says it was trained for."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    heads_kv: int
    vocabulary: int = 152_064
    context: int = 32_768

    def tensors(self) -> Iterator[Tensor]:
        """All of them, in the order of the file."""
        yield Tensor("token_embd.weight", (self.vocabulary, self.width), "Q4_K")
        yield Tensor("output_norm.weight", (self.width,), "F32")
        yield Tensor("output.weight", (self.vocabulary, self.width), "Q6_K")
        for layer in range(self.layers):
            yield from self._of_layer(layer)

    @property
    def bytes(self) -> int:
        """Of all tensors; the file has some megabytes of vocabulary beside them."""
        return sum(tensor.bytes for tensor in self.tensors())

    def _of_layer(self, layer: int) -> Iterator[Tensor]:
        width, kv = self.width, self.width // self.heads * self.heads_kv
        finer = "Q6_K" if has_more_bits(layer, self.layers) else "Q4_K"
        prefix = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            yield Tensor(f"{prefix}.{norm}.weight", (width,), "F32")
        for name, rows, kind in (("q", width, "Q4_K"), ("k", kv, "Q4_K"), ("v", kv, finer)):
            yield Tensor(f"{prefix}.attn_{name}.weight", (rows, width), kind)
            yield Tensor(f"{prefix}.attn_{name}.bias", (rows,), "F32")
        yield Tensor(f"{prefix}.attn_output.weight", (width, width), "Q4_K")
        yield Tensor(f"{prefix}.ffn_gate.weight", (self.inner, width), "Q4_K")
        yield Tensor(f"{prefix}.ffn_up.weight", (self.inner, width), "Q4_K")
        yield Tensor(f"{prefix}.ffn_down.weight", (width, self.inner), finer)


def has_more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M keeps a layer's attn_v and ffn_down in Q6_K: use_more_bits in llama-quant.cpp."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen2.5-7b", layers=28, width=3584, inner=18_944, heads=28, heads_kv=4),
        # two of them and a context fit everywhere; for tests, and for a rehearsal without a GPU
        Shape("small", layers=4, width=512, inner=1536, heads=8, heads_kv=2),
        Shape("other", layers=6, width=512, inner=1536, heads=8, heads_kv=2),
    )
}
