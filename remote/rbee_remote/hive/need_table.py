"""What a model needs of this node at several context sizes and slot counts: the table behind `rbee models show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rbee_remote.hive import planning
from rbee_remote.hive.fit import options as load_options
from rbee_remote.hive.fit import resources
from rbee_remote.hive.fit.meter import Job, Meter, subject_of
from rbee_remote.hive.fit.needs import Estimate
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import ErrorCode, ModelNeeds, NeedPoint, NeedsRequest, RemoteError, WorkerOptions
from rbee_remote.protocol.load_options import AUTO_CTX, MOST_CTX, MOST_SLOTS
from rbee_remote.protocol.measuring import Point
from rbee_remote.system.gpu import Gpu

_SLOTS = (1, 2, 4, 8)
#: Smaller ones are measured too, but tell nobody much.
_LEAST_SHOWN_CTX = 2048
#: What one request may ask for: each point is a context that llama.cpp lays out, some milliseconds.
_MOST_POINTS = 256


def make_needs(
    catalog: Catalog,
    request: NeedsRequest,
    live: Sequence[WorkerRecord],
    meter: Meter,
    ggml: tuple[Gpu, ...] = (),
) -> ModelNeeds | Job:
    """The table, or what has to be measured first. ggml: GPUs that it was asked for, by `ggml_devices`.

    Raises RemoteError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE."""
    for name, values, most in (("ctx", request.ctx, MOST_CTX), ("slots", request.slots, MOST_SLOTS)):
        if any(not 1 <= value <= most for value in values):
            raise RemoteError(ErrorCode.USAGE, f"{name} has to be between 1 and {most}")
    planning.check_sandbox(request.sandbox)
    whole = replace(request.options, ctx=None, slots=None)
    loading = planning.make_loading(catalog, request.model, whole, ggml=ggml)
    meta = loading.model.meta
    steps = load_options.context_sizes(meta)
    shown = request.ctx or tuple(ctx for ctx in steps if ctx >= min(_LEAST_SHOWN_CTX, meta.n_ctx_train))
    slot_counts = request.slots or _SLOTS
    points = tuple(Point(ctx, slots) for slots in slot_counts for ctx in sorted({*steps, *shown}))
    if len(points) > _MOST_POINTS:
        raise RemoteError(ErrorCode.USAGE, f"{len(points)} points are too many; {_MOST_POINTS} is the most")
    loading = planning.widest(loading, live)
    whole_mb = resources.whole_mb(loading.placement)
    subject = subject_of(loading.model.path, loading.asked, request.sandbox, loading.placement.gpus)
    if job := meter.missing(subject, load_options.worth_asking(points, loading.estimate, whole_mb)):
        return job
    estimate = replace(loading.estimate, answer=meter.answer(subject))
    available = planning.available_mb(loading.placement, live)
    return ModelNeeds(
        info=loading.model,
        memory=loading.placement.memory,
        backend=loading.placement.backend,
        device=loading.placement.device,
        available_mb=available,
        points=tuple(_point(estimate, ctx, slots) for ctx in shown for slots in slot_counts),
        largest=tuple(_largest(loading.asked, estimate, slots, available) for slots in slot_counts),
        measured=estimate.answer is not None,
    )


def _point(estimate: Estimate, ctx: int, slots: int) -> NeedPoint:
    return NeedPoint(ctx, slots, estimate.need(ctx, slots).total_mb)


def _largest(asked: WorkerOptions, estimate: Estimate, slots: int, available_mb: int) -> NeedPoint:
    """What AUTO_CTX gives; ctx 0 where not even the smallest context fits."""
    whole = replace(asked, ctx=AUTO_CTX, slots=slots)
    options = load_options.resolve(whole, estimate, available_mb)
    needed = load_options.need_of(options, estimate).total_mb
    return NeedPoint((options.ctx or 0) if needed <= available_mb else 0, slots, needed)
