"""Which GPUs a worker gets, what its process sees, and what it costs the workers that are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from rbee_remote.hive import planning
from rbee_remote.hive.fit import resources
from rbee_remote.hive.fit.meter import Job, Meter
from rbee_remote.hive.fit.needs import Need
from rbee_remote.hive.fit.scheduler import NoMemory
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.planning import Plan
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import ErrorCode, ModelInfo, ModelMeta, RemoteError, SpawnRequest, WorkerOptions, WorkerState
from rbee_remote.protocol.load_options import AUTO_CTX
from rbee_remote.system.gpu import Gpu

META = ModelMeta(
    architecture="llama", n_layers=32, n_ctx_train=8192, n_embd=4096, n_vocab=32000, n_head=32, n_head_kv=8,
    head_dim_k=128, head_dim_v=128,
)  # fmt: skip
BIG = Gpu(0, "big", 80000, 70000, uuid="GPU-aaaa")
SMALL = Gpu(1, "small", 24000, 23000, uuid="GPU-bbbb")
TINY = Gpu(2, "tiny", 2000, 500, uuid="GPU-cccc")


class OneModel:
    """size: of its file, in GB."""

    def __init__(self, path: Path, size: int) -> None:
        path.touch()
        self._info = ModelInfo(
            model="m", path=str(path), size=size * 10**9, meta=META, sha256="", owned=True, source="", added_at=0.0
        )

    def find(self, name: str) -> ModelInfo:
        return self._info


class NoMeter(Meter):
    """llama.cpp is never asked, so that the formula decides."""

    def missing(self, subject: Any, points: Any) -> Job | None:
        return None


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    found = [BIG, SMALL, TINY]
    monkeypatch.setattr(resources, "that_answer", lambda: found)
    monkeypatch.setattr(resources, "runtime_backends", lambda: frozenset({"cuda"}))
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "PBS_GPUFILE"):
        monkeypatch.delenv(name, raising=False)
    return found


def plan(
    folder: Path, *, size: int, live: tuple[WorkerRecord, ...] = (), env: dict[str, str] | None = None, **options: Any
) -> Plan:
    asked = WorkerOptions(**{"ctx": 4096, "slots": 1, **options})
    request = SpawnRequest(model="m", options=asked, env=env or {})
    made = planning.make_plan(cast("Catalog", OneModel(folder / "m.gguf", size)), request, live, NoMeter())
    assert isinstance(made, Plan)
    return made


def worker(plan: Plan, state: WorkerState, mb: int) -> WorkerRecord:
    socket = Path("/none")
    record = WorkerRecord(
        "w", replace(plan.key, model="other"), Need(mb * 10**6, 0, 0), plan.placement, False, 0, socket, socket
    )
    record.state = state
    record.slots_free = plan.key.options.slots or 0
    return record


@pytest.mark.parametrize(
    ("size", "free", "expected"),
    [
        (5, (70000, 23000, 500), "GPU-aaaa"),  # both hold it: the one with most room
        (5, (9000, 23000, 500), "GPU-bbbb"),  # free memory counts, and not how large a GPU is
        (30, (25000, 23000, 500), "GPU-aaaa,GPU-bbbb"),  # one does not hold it
        (30, (25000, 23000, 20000), "GPU-aaaa,GPU-bbbb"),  # two of three do
        (50, (25000, 23000, 20000), "GPU-aaaa,GPU-bbbb,GPU-cccc"),
        (90, (25000, 23000, 500), "GPU-aaaa,GPU-bbbb"),  # in part: what is full takes none of it
        (90, (25000, 23000, 20000), "GPU-aaaa,GPU-bbbb,GPU-cccc"),
    ],
)
def test_as_few_gpus_as_hold_the_model(
    there: list[Gpu], tmp_path: Path, size: int, free: tuple[int, ...], expected: str
) -> None:
    there[:] = [replace(gpu, free_mb=mb) for gpu, mb in zip(there, free, strict=True)]
    made = plan(tmp_path, size=size)
    assert made.env["CUDA_VISIBLE_DEVICES"] == expected
    assert len(made.placement.gpus) == expected.count("GPU")


def test_the_worker_sees_its_gpus_alone_and_keeps_their_names_for_others(there: list[Gpu], tmp_path: Path) -> None:
    made = plan(tmp_path, size=5, devices=("gpu-BB",))
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
    assert made.key.options.devices == made.key.asked.devices == ("CUDA1",)
    assert made.worker_options.devices == ()
    assert plan(tmp_path, size=5).key.options.devices == ("CUDA0",)


def test_order_and_shares_are_those_that_were_asked_for(there: list[Gpu], tmp_path: Path) -> None:
    made = plan(tmp_path, size=5, devices=("1", "CUDA0"), tensor_split=(1.0, 3.0))
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb,GPU-aaaa"
    assert made.worker_options.tensor_split == (1.0, 3.0)


@pytest.mark.parametrize(("env", "expected"), [("1", "GPU-bbbb"), ("GPU-b,GPU-a", "GPU-aaaa"), ("1,0", "GPU-aaaa")])
def test_the_environment_of_the_inventory_limits_the_choice(
    there: list[Gpu], tmp_path: Path, env: str, expected: str
) -> None:
    assert plan(tmp_path, size=5, env={"CUDA_VISIBLE_DEVICES": env}).env["CUDA_VISIBLE_DEVICES"] == expected


def test_a_hidden_gpu_cannot_be_named(there: list[Gpu], tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no device 'CUDA0'") as failure:
        plan(tmp_path, size=5, env={"CUDA_VISIBLE_DEVICES": "1"}, devices=("CUDA0",))
    assert failure.value.code is ErrorCode.USAGE
    with pytest.raises(RemoteError, match="no NVIDIA GPU that rbee may use"):
        plan(tmp_path, size=5, env={"CUDA_VISIBLE_DEVICES": ""}, backend="cuda")
    hidden = plan(tmp_path, size=5, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (hidden.placement.device, hidden.env["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_a_split_goes_before_the_end_of_a_worker_that_is_warm(there: list[Gpu], tmp_path: Path) -> None:
    there[:] = [replace(BIG, free_mb=20000), replace(SMALL, free_mb=15000)]
    idle = worker(plan(tmp_path, size=5), WorkerState.IDLE, 50000)
    assert plan(tmp_path, size=25, live=(idle,)).env["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa,GPU-bbbb"
    made = plan(tmp_path, size=50, live=(idle,))
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa"  # with the idle one gone, which holds memory of this GPU
    assert planning.make_demand(made, [idle]).gpus == {"CUDA0"}
    busy = worker(plan(tmp_path, size=5), WorkerState.BUSY, 50000)
    busy.slots_free = 0
    assert plan(tmp_path, size=50, live=(busy,)).env["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa,GPU-bbbb"  # in part


def test_what_a_worker_that_loads_will_take_counts_on_its_own_gpu(there: list[Gpu], tmp_path: Path) -> None:
    loading = worker(plan(tmp_path, size=5), WorkerState.LOADING, 60000)
    assert loading.placement.gpu_ids == {"CUDA0"}
    assert plan(tmp_path, size=5, live=(loading,)).env["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"


def test_a_context_as_large_as_fits_is_looked_for_where_the_whole_of_it_fits(there: list[Gpu], tmp_path: Path) -> None:
    there[:] = [replace(BIG, free_mb=12000), replace(SMALL, free_mb=11000)]
    made = plan(tmp_path, size=10, ctx=AUTO_CTX, slots=2)
    assert (len(made.placement.gpus), made.key.options.ctx) == (2, 8192)


def test_a_worker_with_another_gpu_is_no_answer_to_who_names_one(there: list[Gpu], tmp_path: Path) -> None:
    first = plan(tmp_path, size=5)
    record = replace(worker(first, WorkerState.IDLE, 9000), key=first.key)
    assert plan(tmp_path, size=5, live=(record,)).placement.gpu_ids == {"CUDA0"}  # it is this one
    assert plan(tmp_path, size=5, live=(record,), devices=("GPU-aaaa",)).key == replace(
        first.key, asked=replace(first.key.asked, devices=("CUDA0",))
    )
    assert plan(tmp_path, size=5, live=(record,), devices=("1",)).placement.gpu_ids == {"CUDA1"}


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        ((BIG, SMALL, TINY), {}, {"CUDA0", "CUDA1"}),  # TINY is too full for a part
        ((BIG, SMALL), {"devices": ("CUDA1",)}, {"CUDA1"}),
        (
            (replace(SMALL, uuid="MIG-1", instance=0), replace(SMALL, uuid="MIG-2", instance=1, free_mb=9000)),
            {},
            {"CUDA1.0"},
        ),
    ],
)
def test_what_could_fit_is_said_of_the_most_that_one_worker_can_have(
    there: list[Gpu], tmp_path: Path, gpus: tuple[Gpu, ...], options: dict[str, Any], expected: set[str]
) -> None:
    there[:] = gpus
    catalog = cast("Catalog", OneModel(tmp_path / "m.gguf", 5))
    loading = planning.widest(planning.make_loading(catalog, "m", WorkerOptions(**options)), ())
    assert loading.placement.gpu_ids == expected
    assert loading.estimate.gpus == len(expected)


def test_what_the_end_of_a_split_worker_frees_is_counted_by_its_shares(there: list[Gpu], tmp_path: Path) -> None:
    """By what was free when it was placed, as llama.cpp splits it; a model for the small GPU gets that part of it."""
    there[:] = [replace(BIG, free_mb=60000), replace(SMALL, free_mb=20000)]
    idle = worker(plan(tmp_path, size=70), WorkerState.IDLE, 80000)
    assert idle.placement.gpu_ids == {"CUDA0", "CUDA1"}
    there[:] = [replace(BIG, free_mb=0), replace(SMALL, free_mb=0)]
    placement = plan(tmp_path, size=5, devices=("CUDA1",)).placement
    assert planning.available_mb(placement, [idle]) == 20000
    asked = worker(plan(tmp_path, size=5, devices=("CUDA0", "CUDA1"), tensor_split=(7.0, 1.0)), WorkerState.IDLE, 8000)
    assert planning.available_mb(placement, [asked]) == 1000


def test_a_gpu_that_one_process_has_for_itself_is_named_where_it_is_refused(there: list[Gpu], tmp_path: Path) -> None:
    there[:] = [replace(BIG, free_mb=0, reserved=True)]
    made = plan(tmp_path, size=5, gpu_layers=99)
    refused = planning.refusal(NoMemory(6000, 0, 0), made)
    assert refused.code is ErrorCode.VRAM_EXHAUSTED
    assert "the compute mode of CUDA0 lets one process use it" in refused.hint
    assert "nvidia-smi -i 0 -c DEFAULT" in refused.hint
    there[:] = [replace(BIG, free_mb=0)]
    assert "compute mode" not in planning.refusal(NoMemory(6000, 0, 0), plan(tmp_path, size=5, gpu_layers=99)).hint
    assert "compute mode" not in planning.refusal(NoMemory(6000, 0, 0), made, "ram").hint
