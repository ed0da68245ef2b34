"""From a spawn request to figures the scheduler decides on, and from its refusals to errors a user understands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee_remote.hive.fit import options as load_options
from rbee_remote.hive.fit import resources, scheduler
from rbee_remote.hive.fit.ggml_devices import GgmlGpu
from rbee_remote.hive.fit.meter import Job, Meter, subject_of
from rbee_remote.hive.fit.needs import Estimate, Need
from rbee_remote.hive.fit.resources import Placement
from rbee_remote.hive.fit.scheduler import Demand, NoMemory, NoSlot, WorkerKey
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import COMING
from rbee_remote.protocol import ErrorCode, Fit, ModelInfo, RemoteError, SpawnRequest, WorkerOptions, WorkerState
from rbee_remote.sandbox import AUTO, OFF, ON
from rbee_remote.system.child import DEVICE_ORDER, child_environment
from rbee_remote.system.cores import usable_cores


@dataclass(frozen=True, slots=True)
class Plan:
    """A spawn request with nothing left open. env: of the worker's process. measured: whether `need` is llama.cpp's
    word. host_mb: what stays in RAM of a model that GPUs hold only in part. model: as the catalog had it."""

    key: WorkerKey
    model: ModelInfo
    need: Need
    placement: Placement
    request: SpawnRequest
    env: dict[str, str]
    measured: bool = False
    host_mb: int = 0


@dataclass(frozen=True, slots=True)
class Loading:
    """A model and how it is to be loaded: asked is `closed`, the estimate has no answer of llama.cpp yet."""

    model: ModelInfo
    placement: Placement
    asked: WorkerOptions
    estimate: Estimate


def make_loading(catalog: Catalog, name: str, asked: WorkerOptions, others: tuple[GgmlGpu, ...] = ()) -> Loading:
    """others: GPUs that ggml was asked for. Raises RemoteError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE."""
    model = catalog.find(name)
    placement = resources.place(asked, resources.gpus(), others)
    asked = load_options.closed(
        asked,
        model.meta,
        backend=placement.backend,
        on_gpu=placement.device != "cpu",
        threads=usable_cores(),
    )
    estimate = Estimate(
        model.meta,
        model.size,
        memory=placement.memory,
        options=asked,
        gpus=len(placement.gpus),
    )
    return Loading(model, placement, asked, estimate)


def make_plan(
    catalog: Catalog,
    request: SpawnRequest,
    live: Sequence[WorkerRecord],
    meter: Meter,
    others: tuple[GgmlGpu, ...] = (),
) -> Plan | Job:
    """What a worker for the request is, or would be; or what has to be measured before that can be said.

    others: GPUs that ggml was asked for.

    Raises RemoteError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE.
    """
    if request.max_workers is not None and request.max_workers < 1:
        raise RemoteError(ErrorCode.USAGE, "max_workers has to be at least 1")
    check_sandbox(request.sandbox)
    env = DEVICE_ORDER | child_environment(os.environ, request.env)
    loading = make_loading(catalog, request.model, request.options, others)
    model, placement, asked = loading.model, loading.placement, loading.asked
    wanted = WorkerKey(model.model, model.path, asked, asked)
    for worker in live:
        if worker.key.serves(wanted) and worker.state is not WorkerState.STOPPING:
            key = replace(worker.key, asked=asked)
            return Plan(key, model, worker.need, worker.placement, request, env, worker.measured)
    available = available_mb(placement, live)
    subject = subject_of(model.path, asked, request.sandbox)
    points = load_options.points_of_interest(asked, loading.estimate, available)
    if job := meter.missing(subject, points):
        return job
    estimate = replace(loading.estimate, answer=meter.answer(subject))
    options = load_options.resolve(asked, estimate, available)
    assert options.ctx is not None
    assert options.slots is not None
    return Plan(
        key=WorkerKey(model.model, model.path, options, asked),
        model=model,
        need=load_options.need_of(options, estimate),
        placement=placement,
        request=request,
        env=env,
        measured=estimate.measured(options.ctx, options.slots) is not None,
        host_mb=load_options.host_mb(options, estimate),
    )


def check_sandbox(mode: str) -> None:
    """Raises RemoteError USAGE."""
    if mode not in (AUTO, ON, OFF):
        raise RemoteError(ErrorCode.USAGE, f"sandbox is auto, on or off, not {mode!r}")


def make_demand(plan: Plan, live: Sequence[WorkerRecord]) -> Demand:
    """Raises RemoteError RAM_EXHAUSTED where a part of the model has to stay in RAM, and finds no room there."""
    if plan.host_mb > resources.available_ram_mb():
        raise refusal(NoMemory(plan.host_mb, resources.available_ram_mb(), 0), plan, scheduler.RAM)
    free = free_mb(plan.placement, live)
    return Demand(plan.key, plan.placement.memory, plan.need.total_mb, free, plan.request.max_workers)


def free_mb(placement: Placement, live: Sequence[WorkerRecord]) -> int:
    """What is available now, less what the workers that are there will still take."""
    memory = placement.memory
    if memory == scheduler.VRAM:
        free = resources.free_vram_mb(placement, resources.gpus())
        taken = sum(
            worker.need.total_mb
            for worker in live
            if worker.state in COMING and worker.placement.gpu_ids & placement.gpu_ids
        )
    else:
        free = resources.available_ram_mb()
        taken = sum(worker.unseen_mb for worker in live if worker.placement.memory == memory)
    return max(0, free - taken)


def available_mb(placement: Placement, live: Sequence[WorkerRecord]) -> int:
    """What a worker could have with those gone that nobody uses."""
    leaving = [worker.view() for worker in live if not worker.in_use or worker.state is WorkerState.STOPPING]
    return free_mb(placement, live) + scheduler.held_mb(leaving, placement.memory)


def make_fit(plan: Plan, live: Sequence[WorkerRecord]) -> Fit:
    """available_mb: with the workers gone that nobody uses."""
    weights, kv, compute = plan.need.parts_mb
    options = plan.key.options
    return Fit(
        memory=plan.placement.memory,
        needed_mb=plan.need.total_mb,
        available_mb=available_mb(plan.placement, live),
        weights_mb=weights,
        kv_mb=kv,
        compute_mb=compute,
        backend=plan.placement.backend,
        device=plan.placement.device,
        ctx=options.ctx or 0,
        slots=options.slots or 0,
        measured=plan.measured,
    )


def refusal(decision: NoSlot | NoMemory, plan: Plan, memory: str = "") -> RemoteError:
    """NODE_BUSY where waiting can help, RAM_EXHAUSTED or VRAM_EXHAUSTED where it cannot. memory: which one is
    short, the placement's unless said."""
    if isinstance(decision, NoSlot):
        return RemoteError(
            ErrorCode.NODE_BUSY,
            "every worker of this node is busy",
            hint="try again later, or raise max_workers in the inventory",
            details={"workers": decision.workers, "max_workers": plan.request.max_workers},
        )
    details = {"needed_mb": decision.needed_mb, "available_mb": decision.available_mb}
    if decision.needed_mb <= decision.later_mb:
        return RemoteError(
            ErrorCode.NODE_BUSY,
            f"busy workers hold the memory that {plan.key.model} needs",
            hint="try again later, or stop a worker",
            details=details,
        )
    memory = memory or plan.placement.memory
    vram = memory == scheduler.VRAM
    return RemoteError(
        ErrorCode.VRAM_EXHAUSTED if vram else ErrorCode.RAM_EXHAUSTED,
        f"{plan.key.model} needs {decision.needed_mb} MB of {memory.upper()}, {decision.available_mb} MB are available",
        hint=_how_to_need_less(plan.key.options),
        details=details,
    )


def _how_to_need_less(options: WorkerOptions) -> str:
    """Fewer slots are no advice where there is one already, as when memory was short and slots were left open."""
    fewer = ", fewer slots (--slots)" if (options.slots or 1) > 1 else ""
    return f"try a smaller quantisation, a smaller context (--ctx){fewer}, or another node"
