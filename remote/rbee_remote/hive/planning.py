"""From a spawn request to figures the scheduler decides on, and from its refusals to errors a user understands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rbee_remote.hive import resources, scheduler
from rbee_remote.hive.catalog import Catalog
from rbee_remote.hive.process import child_environment
from rbee_remote.hive.scheduler import Demand, NoMemory, NoSlot, WorkerKey
from rbee_remote.hive.worker_record import COMING, WorkerRecord
from rbee_remote.protocol import ErrorCode, Fit, RemoteError, SpawnRequest, WorkerState


@dataclass(frozen=True, slots=True)
class Plan:
    """A spawn request with nothing left open. env: of the worker's process."""

    key: WorkerKey
    need: resources.Need
    placement: resources.Placement
    request: SpawnRequest
    env: dict[str, str]


def make_plan(catalog: Catalog, request: SpawnRequest) -> Plan:
    """Raises RemoteError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE."""
    model = catalog.find(request.model)
    if request.max_workers is not None and request.max_workers < 1:
        raise RemoteError(ErrorCode.USAGE, "max_workers has to be at least 1")
    options = request.options
    placement = resources.place(options.backend, options.gpu_layers, resources.gpus())
    options = resources.resolve_options(options, model.meta, placement.backend)
    assert options.ctx is not None  # resolved
    return Plan(
        key=WorkerKey(request.model, model.path, options),
        need=resources.need(model.meta, model.size, ctx=options.ctx, slots=options.slots, memory=placement.memory),
        placement=placement,
        request=request,
        env=child_environment(os.environ, request.env),
    )


def make_demand(plan: Plan, live: Sequence[WorkerRecord]) -> Demand:
    """free_mb: what is available now, less what the workers that are there will still take."""
    memory = plan.placement.memory
    if memory == scheduler.VRAM:
        free = sum(gpu.free_mb for gpu in resources.gpus())
        taken = sum(worker.need.total_mb for worker in live if worker.state in COMING)
    else:
        free = resources.available_ram_mb()
        taken = sum(worker.unseen_mb for worker in live if worker.placement.memory == memory)
    return Demand(plan.key, memory, plan.need.total_mb, max(0, free - taken), plan.request.max_workers)


def make_fit(plan: Plan, demand: Demand, live: Sequence[WorkerRecord]) -> Fit:
    """available_mb: with the workers gone that nobody uses."""
    leaving = [worker.view() for worker in live if not worker.in_use or worker.state is WorkerState.STOPPING]
    weights, kv, compute = plan.need.parts_mb
    return Fit(
        memory=demand.memory,
        needed_mb=demand.needed_mb,
        available_mb=demand.free_mb + scheduler.held_mb(leaving, demand.memory),
        weights_mb=weights,
        kv_mb=kv,
        compute_mb=compute,
        backend=plan.placement.backend,
        device=plan.placement.device,
    )


def refusal(decision: NoSlot | NoMemory, plan: Plan) -> RemoteError:
    """ALL_SLOTS_BUSY where waiting can help, RAM_EXHAUSTED or VRAM_EXHAUSTED where it cannot."""
    if isinstance(decision, NoSlot):
        return RemoteError(
            ErrorCode.ALL_SLOTS_BUSY,
            "every worker of this node is busy",
            hint="try again later, or raise max_workers in the inventory",
            details={"workers": decision.workers, "max_workers": plan.request.max_workers},
        )
    details = {"needed_mb": decision.needed_mb, "available_mb": decision.available_mb}
    if decision.needed_mb <= decision.later_mb:
        return RemoteError(
            ErrorCode.ALL_SLOTS_BUSY,
            f"busy workers hold the memory that {plan.key.model} needs",
            hint="try again later, or stop a worker",
            details=details,
        )
    vram = plan.placement.memory == scheduler.VRAM
    return RemoteError(
        ErrorCode.VRAM_EXHAUSTED if vram else ErrorCode.RAM_EXHAUSTED,
        f"{plan.key.model} needs {decision.needed_mb} MB of {plan.placement.memory.upper()}, "
        f"{decision.available_mb} MB are available",
        hint="a smaller quantisation, a smaller context (--ctx), fewer slots, or another node",
        details=details,
    )
