"""Load options, from what was asked for to what a worker gets. Pure.

Rules
- A context that nobody said is DEFAULT_CTX, and grows into half of the memory that is free then: into nobody else's,
  and no further than a start stays quick.
- `closed` settles what depends on the model and the node; `resolve` settles what depends on the memory there is.
- What leaves `closed` is what `scheduler.matches` compares with the workers there are; only where none serves is it
  resolved, so a worker that got less because memory was short is found again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rbee_remote.hive.fit.needs import KV_BLOCK, Estimate, Need
from rbee_remote.hive.fit.scheduler import MB, RAM
from rbee_remote.protocol import ErrorCode, ModelMeta, RemoteError, WorkerOptions
from rbee_remote.protocol.abilities import ENCODERS
from rbee_remote.protocol.load_options import (
    AUTO_CTX,
    DEFAULT_CTX,
    MOST_ADAPTERS,
    MOST_CTX,
    ON_CPU,
    OPTIONS,
    QUANTISED_KV,
    Adapters,
    Choice,
    Form,
    Number,
    Shares,
)
from rbee_remote.protocol.measuring import Point

DEFAULT_SLOTS = 4
#: Share of the available memory that a context of AUTO_CTX leaves to others: other programs grow, too.
AUTO_MARGIN = 0.1
#: Contexts of AUTO_CTX are multiples of what llama.cpp pads them to.
CTX_STEP = 256

#: What agents and files need: their prompts have 20,000 tokens and more. Where a GPU computes, slots that nobody asked
#: for are fewer for it, two at least; a processor needs minutes for such prompts.
_ROOMY_CTX, _FEWEST_SLOTS = 32768, 2
#: Share of what is left that a context which nobody said grows into: there may be another model to come.
_GROWTH = 0.5
#: Bytes of KV cache in RAM for each byte of weights, up to which it grows. llama.cpp clears the cache when a worker
#: starts, at 2 GB/s on two cores of a small machine; reading the weights takes about as long for half of that.
_CLEARED_FOR_READ = 2

#: Tokens of a model whose texts are computed at once, unless somebody said: with them grows what a step takes, by a
#: megabyte a token for a large vocabulary.
WHOLE_CTX = 2048

_THREADS = Number(1, 512)
#: Up to this share of the available memory the formula's upper bound is good enough, and llama.cpp is not asked.
_PLENTY = 0.5
#: From this many times all the memory that there is, a KV cache is refused by the formula: llama.cpp would lay out its
#: cells, which takes a minute and gigabytes where somebody asks for hundreds of millions of them.
_HOPELESS = 4


def closed(options: WorkerOptions, meta: ModelMeta, *, backend: str, on_gpu: bool, threads: int) -> WorkerOptions:
    """`options`, checked, with all settled but slots, ctx where memory decides, gpu_layers, devices and tensor_split.

    backend: what options.backend means on this node. Raises RemoteError USAGE.
    """
    _check(options, meta)
    options = options if on_gpu else replace(options, **ON_CPU)
    ctx = meta.n_ctx_train if options.ctx is None and meta.n_ctx_train <= DEFAULT_CTX else options.ctx
    if meta.is_whole and ctx is None:
        ctx = min(WHOLE_CTX, meta.n_ctx_train)
    if ctx and meta.architecture in ENCODERS:  # it has no position for a token behind those
        ctx = min(ctx, meta.n_ctx_train)
    return replace(
        options,
        ctx=ctx,
        backend=backend,
        gpu_layers=_layers(options.gpu_layers, meta),
        threads=options.threads or threads,
    )


def _layers(gpu_layers: int | None, meta: ModelMeta) -> int | None:
    """llama.cpp counts the output layer as one more."""
    return None if gpu_layers is None else min(gpu_layers, meta.n_layers + 1)


def _check(options: WorkerOptions, meta: ModelMeta) -> None:
    for name, option in OPTIONS.items():
        _check_value(name, getattr(options, name), option.form)
    _check_value("threads", options.threads, _THREADS)
    if options.kv_type in QUANTISED_KV:
        _check_quantised(options, meta)
    _check_pooling(options.pooling, meta)


def _check_value(name: str, value: Any, form: Form) -> None:
    match form:
        case Number(high=most) if value is not None and not form.least <= value <= most:
            wrong = f"{name} has to be between {form.least} and {most}, not {value}"
        case Choice(words, what) if value not in words:
            wrong = f"{value!r} is not a {what}: it is {', '.join(words[:-1])} or {words[-1]}"
        case Shares() if any(share < 0 for share in value) or (value and not sum(value)):
            wrong = f"the shares of {name} have to be positive numbers"
        case Adapters() if len(value) > MOST_ADAPTERS:
            wrong = f"a model takes {MOST_ADAPTERS} adapters at most, not {len(value)}"
        case _:
            return
    raise RemoteError(ErrorCode.USAGE, wrong)


def _check_pooling(said: str, meta: ModelMeta) -> None:
    if said == "none" and meta.is_whole:
        raise RemoteError(
            ErrorCode.USAGE,
            "pooling none is for a model that generates, and this one only reads",
            hint="use --pooling mean, cls, last or rank",
        )
    if said == "rank" and not meta.ranks:
        raise RemoteError(
            ErrorCode.USAGE,
            "pooling rank is for a reranker, and this model's file has nothing that makes a score",
            hint="use --pooling mean, cls or last",
        )


def _check_quantised(options: WorkerOptions, meta: ModelMeta) -> None:
    if options.flash_attention == "off":
        raise RemoteError(
            ErrorCode.USAGE,
            f"a KV cache of {options.kv_type} needs flash attention",
            hint="use --flash-attention auto, or --kv-type f16",
        )
    for dimension in (meta.head_dim_k, meta.head_dim_v):
        if dimension % KV_BLOCK:
            raise RemoteError(
                ErrorCode.USAGE,
                f"{options.kv_type} comes in blocks of {KV_BLOCK} values, and this model's heads have {dimension}",
                hint="use --kv-type f16",
            )


def points_of_interest(asked: WorkerOptions, estimate: Estimate, available_mb: int, whole_mb: int) -> tuple[Point, ...]:
    """Where llama.cpp has to be asked before `resolve` can be trusted; none where memory is plentiful, or hopelessly
    little. whole_mb: all memory that there is, whoever has it now."""
    first = next(_slot_choices(asked))
    ctx = _least_ctx(asked)
    if estimate.formula(ctx or estimate.meta.n_ctx_train, first).total_mb <= available_mb * _PLENTY:
        return ()
    contexts = (ctx,) if ctx else context_sizes(estimate.meta)
    points = (Point(ctx, slots) for slots in _slot_choices(asked) for ctx in contexts)
    return worth_asking(points, estimate, whole_mb)


def worth_asking(points: Iterable[Point], estimate: Estimate, whole_mb: int) -> tuple[Point, ...]:
    """Those of which it is not plain that no worker here can have them. whole_mb: all memory that there is."""
    most = _HOPELESS * whole_mb * MB
    return tuple(point for point in points if estimate.formula(point.ctx, point.slots).kv <= most)


def context_sizes(meta: ModelMeta) -> tuple[int, ...]:
    """Context sizes between which what is needed grows in straight lines, and where people like to know it."""
    steps = {size for size in (2**exponent for exponent in range(9, 25)) if size < meta.n_ctx_train}
    if meta.n_swa:  # beyond the window and a micro-batch its layers grow no more
        kink = -(-(meta.n_swa + 512) // CTX_STEP) * CTX_STEP
        steps |= {kink} if kink < meta.n_ctx_train else set()
    return (*sorted(steps), meta.n_ctx_train)


def _least_ctx(asked: WorkerOptions) -> int:
    """What a worker has to have at least; AUTO_CTX for the most that fits."""
    return DEFAULT_CTX if asked.ctx is None else asked.ctx


def resolve(asked: WorkerOptions, estimate: Estimate, available_mb: int, free_mb: int = 0) -> WorkerOptions:
    """`asked` with nothing left open that concerns memory.

    available_mb: with the workers gone that nobody uses. free_mb: with all of them as they are; a context that nobody
    said grows into that. Where not even the least fits, that least: it will be refused. ctx AUTO_CTX goes before open
    slots: there are as many as can have the whole trained context, at least one.
    """
    if asked.ctx == AUTO_CTX:
        return _resolve_auto(asked, estimate, int(available_mb * (1 - AUTO_MARGIN)))
    if asked.ctx is None:
        least = resolve(replace(asked, ctx=DEFAULT_CTX), estimate, available_mb)
        return _grown(least, asked, estimate, free_mb)
    for slots in _slot_choices(asked):
        options = replace(asked, slots=slots)
        if _needed_mb(options, estimate) <= available_mb:
            return _with_layers(options, estimate, available_mb)
    return _with_layers(options, estimate, available_mb)


def holds(asked: WorkerOptions, estimate: Estimate, available_mb: int) -> bool:
    """Whether that much holds the model whole, with all that would be chosen where memory is plentiful."""
    ctx, auto = _least_ctx(asked), asked.ctx == AUTO_CTX
    options = replace(asked, slots=next(_slot_choices(asked)), ctx=ctx or estimate.meta.n_ctx_train)
    return _needed_mb(options, estimate) <= int(available_mb * (1 - AUTO_MARGIN) if auto else available_mb)


def _resolve_auto(asked: WorkerOptions, estimate: Estimate, available_mb: int) -> WorkerOptions:
    most = estimate.meta.n_ctx_train
    for slots in _slot_choices(asked):
        options = replace(asked, slots=slots, ctx=most)
        if _needed_mb(options, estimate) <= available_mb:
            return _with_layers(options, estimate, available_mb)
    # Bisection over multiples of CTX_STEP: the first always counts as fitting.
    low, high = 1, max(1, -(-most // CTX_STEP))
    while high - low > 1:
        middle = (low + high) // 2
        fits = _needed_mb(replace(options, ctx=middle * CTX_STEP), estimate) <= available_mb
        low, high = (middle, high) if fits else (low, middle)
    return _with_layers(replace(options, ctx=min(most, low * CTX_STEP)), estimate, available_mb)


def _grown(least: WorkerOptions, asked: WorkerOptions, estimate: Estimate, free_mb: int) -> WorkerOptions:
    """`least` with the context that it can have beside what others may want; itself where memory is short."""
    every = estimate.meta.n_layers + 1
    has_gpu = estimate.memory != RAM
    if least.slots != next(_slot_choices(asked)) or (has_gpu and least.gpu_layers != every):
        return least
    room = _needed_mb(least, estimate)
    room += int((free_mb - room) * _GROWTH)
    sizes = [size for size in context_sizes(estimate.meta) if DEFAULT_CTX < size <= MOST_CTX]
    fewest = _FEWEST_SLOTS if has_gpu and asked.slots is None else least.slots
    grown = []
    for slots in range(least.slots, fewest - 1, -1):
        some = [replace(least, ctx=size, slots=slots) for size in sizes]
        grown.append(next((each for each in reversed(some) if _starts_soon(each, estimate, room)), least))
    roomy = min(_ROOMY_CTX, estimate.meta.n_ctx_train)
    return next((each for each in grown if (each.ctx or 0) >= roomy), grown[0])


def _starts_soon(options: WorkerOptions, estimate: Estimate, room_mb: int) -> bool:
    need = need_of(options, estimate)
    return need.total_mb <= room_mb and (estimate.memory != RAM or need.kv <= _CLEARED_FOR_READ * estimate.size)


def _slot_choices(asked: WorkerOptions) -> Iterator[int]:
    return iter((asked.slots,)) if asked.slots is not None else iter(range(DEFAULT_SLOTS, 0, -1))


def _with_layers(options: WorkerOptions, estimate: Estimate, available_mb: int) -> WorkerOptions:
    """gpu_layers settled: all of them, or as many as the GPUs hold, at least one."""
    if options.gpu_layers is not None:
        return options
    every = estimate.meta.n_layers + 1
    if estimate.memory == RAM:  # of a GPU that shares it
        return replace(options, gpu_layers=every)
    low, high = 1, every + 1  # by bisection: a file may claim billions of layers
    while high - low > 1:
        middle = (low + high) // 2
        fits = _needed_mb(replace(options, gpu_layers=middle), estimate) <= available_mb
        low, high = (middle, high) if fits else (low, middle)
    return replace(options, gpu_layers=low)


def _needed_mb(options: WorkerOptions, estimate: Estimate) -> int:
    return need_of(options, estimate).total_mb


def need_of(options: WorkerOptions, estimate: Estimate) -> Need:
    """What is needed in the memory that holds the weights. options: ctx and slots settled."""
    assert options.ctx is not None
    assert options.slots is not None
    need = estimate.need(options.ctx, options.slots)
    if estimate.memory == RAM or options.gpu_layers is None:
        return need
    return need.part(options.gpu_layers / (estimate.meta.n_layers + 1))


def host_mb(options: WorkerOptions, estimate: Estimate) -> int:
    """What stays in RAM of a model of which GPUs hold some layers, or all; 0 where one memory has it all."""
    every = estimate.meta.n_layers + 1
    assert options.ctx is not None
    assert options.slots is not None
    if estimate.memory == RAM:
        return 0
    if options.gpu_layers is None or options.gpu_layers >= every:
        return math.ceil(estimate.outputs(options.ctx) / MB)
    rest = replace(estimate, memory=RAM, gpus=0).need(options.ctx, options.slots)
    return rest.part(1 - options.gpu_layers / every).total_mb
