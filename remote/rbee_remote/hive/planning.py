"""From a spawn request to figures the scheduler decides on, and from its refusals to errors a user understands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rbee_remote.hive.adapters import find_adapters
from rbee_remote.hive.fit import options as load_options
from rbee_remote.hive.fit import resources, scheduler
from rbee_remote.hive.fit.meter import Job, Meter, subject_of
from rbee_remote.hive.fit.needs import Estimate, Need
from rbee_remote.hive.fit.resources import Placement
from rbee_remote.hive.fit.scheduler import Demand, NoMemory, NoSlot, WorkerKey
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import COMING
from rbee_remote.protocol import ErrorCode, Fit, ModelInfo, RemoteError, SpawnRequest, WorkerOptions, WorkerState
from rbee_remote.protocol.load import AdapterFile
from rbee_remote.sandbox import AUTO, OFF, ON
from rbee_remote.system.child import DEVICE_ORDER, child_environment
from rbee_remote.system.cores import usable_cores
from rbee_remote.system.gpu import Gpu
from rbee_remote.system.gpu_choice import are_named, seeing_no_others, with_gpus
from rbee_remote.system.gpu_visible import environment, vulkan_settings


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
    adapters: tuple[AdapterFile, ...] = ()

    @property
    def worker_options(self) -> WorkerOptions:
        """What the worker is told. Of known GPUs it sees its own alone, by `env`, and counts them anew; Vulkan's it is
        told by name."""
        gpus = self.placement.gpus
        return seeing_no_others(self.key.options, gpus) if gpus else self.key.options


@dataclass(frozen=True, slots=True)
class Loading:
    """A model and how it is to be loaded: asked is `closed`, the estimate has no answer of llama.cpp yet. env: what of
    the worker's environment decides which GPUs Vulkan has, and in which order."""

    model: ModelInfo
    placement: Placement
    asked: WorkerOptions
    estimate: Estimate
    env: tuple[tuple[str, str], ...] = ()
    adapters: tuple[AdapterFile, ...] = ()


def make_loading(
    catalog: Catalog,
    name: str,
    asked: WorkerOptions,
    env: Mapping[str, str] | None = None,
    ggml: tuple[Gpu, ...] = (),
) -> Loading:
    """On all GPUs that may be used. env: of the worker's process, None for the hive's. ggml: what it was asked for.

    Raises RemoteError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE.
    """
    model = catalog.find(name)
    adapters = find_adapters(catalog, model, asked)
    placement = resources.place(asked, resources.gpus(env), ggml)
    if are_named(asked) and placement.gpus:  # so that two who name one GPU differently share a worker
        asked = with_gpus(asked, placement.gpus)
    asked = load_options.closed(
        asked,
        model.meta,
        backend=placement.backend,
        on_gpu=placement.device != "cpu",
        threads=usable_cores(),
    )
    estimate = Estimate(
        model.meta,
        model.size + sum(info.size for info, _ in adapters),
        memory=placement.memory,
        options=asked,
        gpus=len(placement.gpus),
    )
    settings = vulkan_settings(env or {}) if placement.backend == "vulkan" else ()
    files = tuple(file for _, file in adapters)
    return Loading(model, placement, asked, estimate, settings, files)


def make_plan(
    catalog: Catalog,
    request: SpawnRequest,
    live: Sequence[WorkerRecord],
    meter: Meter,
    ggml: tuple[Gpu, ...] = (),
) -> Plan | Job:
    """What a worker for the request is, or would be; or what has to be measured before that can be said.

    ggml: GPUs that it was asked for, by `ggml_devices`. Raises RemoteError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE.
    """
    if request.max_workers is not None and request.max_workers < 1:
        raise RemoteError(ErrorCode.USAGE, "max_workers has to be at least 1")
    check_sandbox(request.sandbox)
    env = DEVICE_ORDER | child_environment(os.environ, request.env)
    loading = make_loading(catalog, request.model, request.options, env, ggml)
    model, asked = loading.model, loading.asked
    files = tuple(adapter.path for adapter in loading.adapters)
    wanted = WorkerKey(model.model, model.path, asked, asked, files)
    if worker := scheduler.find_serving(wanted, live):
        key = replace(worker.key, asked=asked)
        return Plan(key, model, worker.need, worker.placement, request, env, worker.measured)
    chosen = choose_place(loading, live, meter, request.sandbox)
    if isinstance(chosen, Job):
        return chosen
    placement, estimate = chosen.placement, chosen.estimate
    now = resources.that_answer() if placement.gpus else ()
    options = load_options.resolve(asked, estimate, available_mb(placement, live, now), free_mb(placement, live, now))
    if placement.gpus:
        options = with_gpus(options, placement.gpus)
        env = environment(placement.gpus, env)
    assert options.ctx is not None
    assert options.slots is not None
    return Plan(
        key=replace(wanted, options=options),
        model=model,
        need=load_options.need_of(options, estimate),
        placement=placement,
        request=request,
        env=env,
        measured=estimate.measured(options.ctx, options.slots) is not None,
        host_mb=load_options.host_mb(options, estimate),
        adapters=loading.adapters,
    )


def choose_place(loading: Loading, live: Sequence[WorkerRecord], meter: Meter, sandbox: str) -> Loading | Job:
    """`loading` where it is to be, its estimate with llama.cpp's answer; or what has to be measured first.

    Of GPUs that nobody named: the one with most room of those that hold the model whole, or else as few as do; first by
    what is free, then with the workers gone that nobody uses. Where all of them together do not, they share it.
    """
    placement = loading.placement
    if placement.memory != scheduler.VRAM or are_named(loading.asked) or placement.split or len(placement.gpus) < 2:
        return _measured(loading, available_mb(placement, live), meter, sandbox)
    now = resources.that_answer()
    for room in (free_mb, available_mb):
        for found in _places(loading, room, live, now):
            available = room(found.placement, live, now)
            if loading.model.size > available * scheduler.MB:
                continue  # nothing needs to be measured to see that
            measured = _measured(found, available, meter, sandbox)
            if isinstance(measured, Job) or load_options.holds(loading.asked, measured.estimate, available):
                return measured
    shared = widest(loading, live)
    return _measured(shared, available_mb(shared.placement, live, now), meter, sandbox)


def widest(loading: Loading, live: Sequence[WorkerRecord]) -> Loading:
    """Where most memory is at once for one worker."""
    if loading.placement.memory != scheduler.VRAM or are_named(loading.asked) or loading.placement.split:
        return loading
    return _places(loading, available_mb, live, resources.that_answer())[-1]


Room = Callable[[Placement, Sequence[WorkerRecord], Sequence[Gpu]], int]


def _places(loading: Loading, room: Room, live: Sequence[WorkerRecord], now: Sequence[Gpu]) -> list[Loading]:
    """Sets of the GPUs, in the order in which they are to be tried."""
    placement = loading.placement
    rooms = {gpu.id: room(placement.on((gpu,)), live, now) for gpu in placement.gpus}
    return [
        replace(loading, placement=placement.on(gpus), estimate=replace(loading.estimate, gpus=len(gpus)))
        for gpus in resources.gpu_sets(placement.gpus, rooms)
    ]


def _measured(loading: Loading, available: int, meter: Meter, sandbox: str) -> Loading | Job:
    subject = subject_of(loading.model.path, loading.asked, sandbox, loading.placement.gpus, loading.env)
    whole = resources.whole_mb(loading.placement)
    points = load_options.points_of_interest(loading.asked, loading.estimate, available, whole)
    if job := meter.missing(subject, points):
        return job
    return replace(loading, estimate=replace(loading.estimate, answer=meter.answer(subject)))


def check_sandbox(mode: str) -> None:
    """Raises RemoteError USAGE."""
    if mode not in (AUTO, ON, OFF):
        raise RemoteError(ErrorCode.USAGE, f"sandbox is auto, on or off, not {mode!r}")


def make_demand(plan: Plan, live: Sequence[WorkerRecord]) -> Demand:
    """Raises RemoteError RAM_EXHAUSTED where a part of the model has to stay in RAM, and finds no room there."""
    if plan.host_mb > resources.available_ram_mb():
        raise refusal(NoMemory(plan.host_mb, resources.available_ram_mb(), 0), plan, scheduler.RAM)
    free = free_mb(plan.placement, live)
    placement, most = plan.placement, plan.request.max_workers
    return Demand(plan.key, placement.memory, plan.need.total_mb, free, most, placement.gpu_ids)


def free_mb(placement: Placement, live: Sequence[WorkerRecord], now: Sequence[Gpu] | None = None) -> int:
    """What is available now, less what the workers that are there will still take.

    now: the node's GPUs, None to ask."""
    memory = placement.memory
    if memory == scheduler.VRAM:
        free = resources.free_vram_mb(placement, resources.that_answer() if now is None else now)
        coming = [worker.view() for worker in live if worker.state in COMING]
        taken = scheduler.held_mb(coming, memory, placement.gpu_ids)
    else:
        free = resources.available_ram_mb()
        taken = sum(worker.unseen_mb for worker in live if worker.placement.memory == memory)
    return max(0, free - taken)


def available_mb(placement: Placement, live: Sequence[WorkerRecord], now: Sequence[Gpu] | None = None) -> int:
    """What a worker could have with those gone that nobody uses."""
    leaving = [worker.view() for worker in live if not worker.in_use or worker.state is WorkerState.STOPPING]
    return free_mb(placement, live, now) + scheduler.held_mb(leaving, placement.memory, placement.gpu_ids)


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
        hint=(_how_to_share(plan.placement) if vram else "") or _how_to_need_less(plan.key.options),
        details=details,
    )


def _how_to_share(placement: Placement) -> str:
    """What mends a GPU that another process has for itself; "" where memory is what is short."""
    reserved = [gpu for gpu in placement.gpus if gpu.reserved]
    if not reserved:
        return ""
    names, numbers = ", ".join(gpu.id for gpu in reserved), ",".join(str(gpu.index) for gpu in reserved)
    return (
        f"the compute mode of {names} lets one process use it, and one does: end that, or as root: "
        f"nvidia-smi -i {numbers} -c DEFAULT"
    )


def _how_to_need_less(options: WorkerOptions) -> str:
    """Fewer slots are no advice where there is one already, as when memory was short and slots were left open."""
    fewer = ", fewer slots (--slots)" if (options.slots or 1) > 1 else ""
    return f"try a smaller quantisation, a smaller context (--ctx){fewer}, or another node"
