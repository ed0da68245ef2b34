"""What a model needs of a node's memory: by a formula over what its file says of itself, or as llama.cpp measured it.

Pure. Rules
- The formula is an upper bound where it cannot be exact, so that what it admits fits.
- A measurement covers points (tokens per slot, slots); between two context sizes what is needed grows in a straight
  line, beyond the window of a model that has one, so a value in between is interpolated.

MB are 10**6 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rbee_remote.hive.fit.scheduler import MB, RAM, VRAM
from rbee_remote.protocol import ModelMeta, WorkerOptions
from rbee_remote.protocol.abilities import ENCODERS
from rbee_remote.protocol.load_options import KV_TYPES
from rbee_remote.protocol.measuring import MeasureAnswer, Measured

#: The values of a head have to fill whole blocks of a quantised cache.
KV_BLOCK = 32

_PADDING = 256  # llama_context: GGML_PAD(n_ctx_seq, 256), and the same for the cells of a sliding window
_UBATCH = 512  # the worker's micro-batch in tokens
_EMBEDDED_AT_ONCE = 32  # tokens whose logits a step may ask for beside those of the slots

# What a worker takes beside weights and KV cache: see `Estimate._compute`.
_PROCESS_BYTES = 68 * MB  # Python, the HTTP server, numpy and llama.cpp's libraries
_VOCAB_ENTRY_BYTES = 400  # llama.cpp's tables for one token of the vocabulary
_SLOT_VOCAB_ENTRY_BYTES = 16  # logits of the slot's last token, and the candidates that its sampler sorts
_ACTIVATIONS = 16  # f32 vectors of n_embd per token that are alive at once, the feed-forward's wider ones included
_MASKS = 6  # bytes of the attention's masks for two tokens that see each other, where a step is a whole text
_LEAST_FLASH = 64  # values of a head from which CUDA has flash attention for it
_GPU_CONTEXT_BYTES = 500 * MB  # what CUDA takes on a device before anything is put there
_WORKER_BYTES = 40 * MB  # beside what a measuring process holds: HTTP server, numpy, chat template, threads, sampling


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker takes, in bytes."""

    weights: int
    kv: int
    compute: int

    @property
    def total_mb(self) -> int:
        return sum(self.parts_mb)

    @property
    def parts_mb(self) -> tuple[int, int, int]:
        """Weights, KV cache, compute buffers: each rounded up, so that the total is the sum of what is shown."""
        return _up(self.weights), _up(self.kv), _up(self.compute)

    def part(self, share: float) -> Need:
        """What `share` of the layers takes; computing takes what it takes for all."""
        return Need(math.ceil(self.weights * share), math.ceil(self.kv * share), self.compute)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model and how it is to be loaded; tells what that needs at any context size and slot count.

    size: of the model's file in bytes. memory: RAM or VRAM, which the weights go to. gpus: how many share the model, 0
    on the processor; in RAM, those that have no memory of their own. answer: what llama.cpp said, where it was asked.
    """

    meta: ModelMeta
    size: int
    memory: str = RAM
    options: WorkerOptions = field(default_factory=WorkerOptions)
    gpus: int = 0
    answer: MeasureAnswer | None = None

    def need(self, ctx: int, slots: int) -> Need:
        """ctx: tokens per slot. The whole model in one memory."""
        return self.measured(ctx, slots) or self.formula(ctx, slots)

    def formula(self, ctx: int, slots: int) -> Need:
        kv = kv_bytes(self.meta, self.options.kv_type, ctx=ctx, slots=slots)
        return Need(self._weights(twice=True), kv, self._compute(ctx, slots))

    def measured(self, ctx: int, slots: int) -> Need | None:
        """None where the measured points do not tell: none with these slots, or none as large as `ctx`."""
        points = self.answer.points if self.answer else ()
        known = sorted((point for point in points if point.at.slots == slots), key=lambda point: point.at.ctx)
        above = next((point for point in known if point.at.ctx >= ctx), None)
        if above is None:
            return None
        below = next((point for point in reversed(known) if point.at.ctx <= ctx), above)
        low, high = self._from_point(below), self._from_point(above)
        if below is above:
            return high
        share = (ctx - below.at.ctx) / (above.at.ctx - below.at.ctx)
        kv, compute = (_between(*ends, share) for ends in ((low.kv, high.kv), (low.compute, high.compute)))
        return Need(high.weights, kv, compute)

    def _from_point(self, point: Measured) -> Need:
        assert self.answer is not None  # it has the point
        if self.memory == VRAM:
            compute = self.gpus * _GPU_CONTEXT_BYTES + point.device_compute
        else:
            samplers = point.at.slots * self.meta.n_vocab * _SLOT_VOCAB_ENTRY_BYTES
            compute = self.answer.process + _WORKER_BYTES + samplers + point.host_compute + self.outputs(point.at.ctx)
            compute += self.gpus * _GPU_CONTEXT_BYTES + (point.device_compute if self.gpus else 0)
        return Need(self._weights(twice=self.answer.repacked), point.kv, compute)

    def outputs(self, ctx: int) -> int:
        """Bytes in RAM, wherever the model is, that llama.cpp clears for the logits of each token of the longest step,
        though there are none (output_reserve in src/llama-context.cpp); 0 of a model that generates."""
        return max(_UBATCH, ctx) * self.meta.n_vocab * 4 if self.meta.is_whole else 0

    def _weights(self, *, twice: bool) -> int:
        return self.size + (self.meta.tied_bytes if twice and self.memory == RAM else 0)

    def _compute(self, ctx: int, slots: int) -> int:
        """What computing takes, the process itself included, for a micro-batch of 512 tokens, or of the longest text
        where a text has to be computed at once.

        llama.cpp reserves a buffer for the worst graph (graph_reserve in src/llama-context.cpp): activations in f32,
        the attention mask in f16, without flash attention each head's scores in f32, the logits of as many tokens as a
        step may ask for (`worker.llama.load.context_params`) in f32. On a GPU all of it is taken. In RAM only what is
        written to counts: one token's logits per slot.
        """
        meta = self.meta
        step = max(_UBATCH, _padded(ctx)) if meta.is_whole else _UBATCH
        encodes = meta.architecture in ENCODERS
        # Tokens that each of a step is compared with: slots have a common cache where a text is computed at once.
        seen = step if encodes else _padded(ctx) * (slots if meta.is_whole else 1)
        graph = step * (meta.n_embd * 4 * _ACTIVATIONS + seen * (_MASKS if meta.is_whole else 2))
        if meta.is_whole and not encodes:
            graph += step * meta.n_vocab * 4  # logits of all of them
        if self.options.flash_attention == "off" or (
            meta.is_whole and self.memory == VRAM and meta.head_dim_k < _LEAST_FLASH
        ):
            graph += step * seen * 4 * max(meta.n_head, 1)
        if self.memory == VRAM:
            logits = 0 if meta.is_whole else (slots + _EMBEDDED_AT_ONCE) * meta.n_vocab * 4
            return self.gpus * (_GPU_CONTEXT_BYTES + graph) + logits
        process = _PROCESS_BYTES + self.gpus * _GPU_CONTEXT_BYTES + self.outputs(ctx)
        return process + graph + meta.n_vocab * (_VOCAB_ENTRY_BYTES + slots * _SLOT_VOCAB_ENTRY_BYTES)


def kv_bytes(meta: ModelMeta, kv_type: str = "f16", *, ctx: int, slots: int) -> int:
    """The KV cache and the recurrent states: llama.cpp, src/llama-kv-cache.cpp, size_k_bytes and size_v_bytes.

    Every slot has cells of its own, padded to 256. Layers with a sliding window of n_swa keep that many tokens and a
    micro-batch (llama-kv-cache-iswa.cpp). Recurrent states are f32, whatever the cache is (llama-memory-recurrent.cpp).
    """
    if meta.architecture in ENCODERS:
        return 0
    cells = _padded(ctx)
    window_cells = _padded(min(cells, meta.n_swa + _UBATCH))
    if meta.kv_per_token or meta.kv_per_token_swa or meta.state_per_slot:
        values = meta.kv_per_token * cells + meta.kv_per_token_swa * window_cells
    else:  # read from the file when these were not looked for
        values = meta.n_layers * meta.n_head_kv * (meta.head_dim_k + meta.head_dim_v) * cells
    return slots * (math.ceil(values * KV_TYPES[kv_type].size) + meta.state_per_slot * 4)


def _between(low: int, high: int, share: float) -> int:
    return low + math.ceil((high - low) * share)


def _padded(ctx: int) -> int:
    return -(-ctx // _PADDING) * _PADDING


def _up(size: int) -> int:
    return -(-size // MB)
