"""What a node has: RAM, VRAM, backends; and where a worker would compute.

MB are 10**6 bytes. `RBEE_RAM_LIMIT_MB` in the hive's environment lowers what counts as available RAM.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil

from rbee_remote.hive.fit.scheduler import MB, RAM, VRAM
from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from rbee_remote.protocol.load_options import BACKENDS
from rbee_remote.system import gpu_nvml
from rbee_remote.system.gpu import GGML, SilentGpu
from rbee_remote.system.gpu import Gpu as Gpu
from rbee_remote.system.gpu_awake import StayAwake
from rbee_remote.system.gpu_choice import are_named, choose_gpus, used_ones
from rbee_remote.system.gpu_sysfs import amd_gpus
from rbee_remote.system.gpu_visible import granted_by_pbs, visible
from rbee_remote.system.time_limit import TimeLimit

_log = logging.getLogger(__name__)

#: How llama.cpp names the library of a backend: libggml-<name>.so beside libllama, or where the wheel puts it.
_BACKEND_LIBRARIES = {"cuda": "cuda", "metal": "metal", "rocm": "hip", "vulkan": "vulkan"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a worker computes. memory: which kind holds the weights. device: "cpu", or the GPUs' names.

    gpus: those whose memory is known, as they were when the worker was placed; the worker sees no others. split: shares
    of the model for each of them, none for by free memory.
    """

    backend: str
    device: str
    memory: str
    gpus: tuple[Gpu, ...] = ()
    split: tuple[float, ...] = ()

    @property
    def gpu_ids(self) -> frozenset[str]:
        return frozenset(gpu.id for gpu in self.gpus)

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """How a model lies on the GPUs: as it was asked for, else by the memory that was free, as llama.cpp splits it.
        Nothing where nobody knows."""
        parts = self.split or tuple(float(gpu.free_mb) for gpu in self.gpus)
        if len(parts) != len(self.gpus) or not any(parts):
            return ()
        return tuple(zip((gpu.id for gpu in self.gpus), parts, strict=True))

    def on(self, gpus: tuple[Gpu, ...]) -> Placement:
        """The same on these GPUs."""
        return replace(self, gpus=gpus, device=", ".join(gpu.name for gpu in gpus))


def place(options: WorkerOptions, gpus: tuple[Gpu, ...], ggml: tuple[Gpu, ...] = ()) -> Placement:
    """Where a worker with these options computes. ggml: what it was asked for, by `ggml_devices`.

    Raises RemoteError BACKEND_UNAVAILABLE, USAGE.
    """
    backend = options.backend
    if backend not in BACKENDS:
        raise RemoteError(ErrorCode.USAGE, f"{backend!r} is not a backend", hint=f"one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = _best_backend(gpus, ggml)
    if backend == "cpu" or not options.uses_gpus:
        if are_named(options) or options.tensor_split:
            raise RemoteError(
                ErrorCode.USAGE,
                f"there is no GPU to choose: this worker computes with backend {backend}, on the CPU",
                hint="leave out --device and --tensor-split, or choose another node",
            )
        return Placement(backend, "cpu", RAM)
    if backend not in runtime_backends():
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            f"the runtime on this node was built without {backend}",
            hint='set backend = "auto" for the node in the inventory',
        )
    if backend == "cuda" and not _of("nvidia", gpus):
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            "this node has no NVIDIA GPU that rbee may use",
            hint='`rbee nodes check` says why; or set backend = "cpu" for the node in the inventory',
        )
    if backend == "cuda" or (backend == "rocm" and _of("amd", gpus)):
        return _on_gpus(backend, _of("nvidia" if backend == "cuda" else "amd", gpus), options)
    if backend == "vulkan":
        return _by_vulkan(ggml, options)
    # Metal's memory is RAM, as an APU's is by ROCm: that is not told, and one that is too small fails while loading.
    return Placement(backend, backend, RAM)


def _by_vulkan(ggml: Sequence[Gpu], options: WorkerOptions) -> Placement:
    """An integrated GPU's memory is RAM. Raises RemoteError BACKEND_UNAVAILABLE, USAGE."""
    there = used_ones(ggml)
    if not there:
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            "llama.cpp finds no GPU for vulkan on this node",
            hint='`rbee nodes check` says what keeps one from being used; backend = "auto" computes without it',
        )
    chosen = choose_gpus(there, options)
    names = ", ".join(gpu.name for gpu in chosen)
    if chosen[0].integrated:
        return Placement("vulkan", names, RAM)
    return Placement("vulkan", names, VRAM, chosen, options.tensor_split)


def _of(vendor: str, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Of one maker; an integrated GPU only where NVIDIA has it, and where it is not beside others."""
    found = [gpu for gpu in gpus if gpu.vendor == vendor]
    dedicated = [gpu for gpu in found if not gpu.integrated]
    return tuple(dedicated or (found if vendor == "nvidia" else ()))


def _on_gpus(backend: str, gpus: tuple[Gpu, ...], options: WorkerOptions) -> Placement:
    """Raises RemoteError USAGE."""
    chosen = choose_gpus(gpus, options)
    if (
        len(chosen) > 1
        and any(gpu.instance is not None for gpu in chosen)
        and (are_named(options) or options.tensor_split)
    ):
        raise RemoteError(
            ErrorCode.USAGE,
            "a worker can use one MIG instance, and nothing beside it: CUDA shows a process no more",
            hint=f"choose one of {', '.join(gpu.id for gpu in chosen)} with --device",
        )
    memory = RAM if chosen[0].integrated else VRAM
    return Placement(backend, "", memory, split=options.tensor_split).on(chosen)


#: A GPU with less room is no part of a split: CUDA and the buffers to compute in take half of that for themselves.
_LEAST_PART_MB = 1000


def gpu_sets(gpus: Sequence[Gpu], room_mb: Mapping[str, int]) -> list[tuple[Gpu, ...]]:
    """In the order in which they are to be tried: the GPU with most room, then two, and so on.

    Each set is in the driver's order. room_mb: by id. A MIG instance is alone: a process sees one at most.
    """
    by_room = sorted(gpus, key=lambda gpu: -room_mb.get(gpu.id, 0))  # stable: of equal ones the first
    whole = [gpu for gpu in by_room if gpu.instance is None]
    parts = [gpu for gpu in whole if room_mb.get(gpu.id, 0) >= _LEAST_PART_MB] or whole[:1]
    sets = [tuple(by_room[:1])] + [tuple(parts[:count]) for count in range(2, len(parts) + 1)]
    return [tuple(gpu for gpu in gpus if gpu in chosen) for chosen in sets]


def free_vram_mb(placement: Placement, gpus: Sequence[Gpu]) -> int:
    """How large a model the chosen GPUs could hold together. Split in given shares, the first one that is full is the
    limit. gpus: all of the node, as they are now, but for those that ggml was asked for when the placement was
    made."""
    asked = [gpu for gpu in placement.gpus if gpu.vendor == GGML]
    by_id = {gpu.id: gpu.free_mb for gpu in (*asked, *gpus)}
    free = [by_id.get(gpu.id, 0) for gpu in placement.gpus]
    if not placement.split:
        return sum(free)
    whole = sum(placement.split)
    return int(min(mb * whole / share for mb, share in zip(free, placement.split, strict=True) if share))


def whole_mb(placement: Placement) -> int:
    """All that the node and the placement's GPUs have, whoever has it now: no worker can get more."""
    ram: int = psutil.virtual_memory().total
    return ram // MB + sum(gpu.total_mb for gpu in placement.gpus)


def _best_backend(gpus: tuple[Gpu, ...], ggml: tuple[Gpu, ...]) -> str:
    available = runtime_backends()
    if "cuda" in available and _of("nvidia", gpus):
        return "cuda"
    if found := next((name for name in ("metal", "rocm") if name in available), None):
        return found
    return "vulkan" if "vulkan" in available and ggml else "cpu"


@functools.cache
def runtime_backends() -> frozenset[str]:
    """The GPU backends that the installed llama.cpp has, by the libraries that lie there; nothing is loaded."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return frozenset()
    package = Path(spec.origin).parent
    folders = (package / "lib", package.parent / "bin")
    names = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return frozenset(
        backend
        for backend, library in _BACKEND_LIBRARIES.items()
        if any(name.startswith(f"libggml-{library}.") for name in names)
    )


def available_ram_mb() -> int:
    """What can be taken without swapping: the kernel's estimate, or less where a control group limits us."""
    available: int = psutil.virtual_memory().available
    limits = [available, *(each.room for each in _cgroup_limits())]
    if limit := os.environ.get("RBEE_RAM_LIMIT_MB"):
        if not limit.isdecimal():
            raise RemoteError(ErrorCode.USAGE, f"RBEE_RAM_LIMIT_MB has to be a number of megabytes, not {limit!r}")
        limits.append(int(limit) * MB)
    return max(0, min(limits)) // MB


def ram_mb() -> tuple[int, int]:
    """(all of it, what is taken); a limit of a control group counts like the end of the memory."""
    memory, limits = psutil.virtual_memory(), _cgroup_limits()
    whole = min([memory.total, *(each.limit for each in limits)])
    available = min([memory.available, *(each.room for each in limits)])
    return whole // MB, max(0, whole - max(0, available)) // MB


class _CgroupLimit(NamedTuple):
    """Bytes: that it allows, and that are left below that."""

    limit: int
    room: int


def _cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[_CgroupLimit]:
    """The memory limits from this process's control group up to the root, versions 1 and 2."""
    if not own.exists():
        return []
    limits: list[_CgroupLimit] = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = base / path.lstrip("/")
        # In a container the path may be the host's: then the mounted root is the container's own group.
        folders = {group, *(parent for parent in group.parents if parent.is_relative_to(base)), base}
        limits += filter(None, (_cgroup_limit(folder, *names) for folder in folders))
    return limits


def _cgroup_limit(folder: Path, limit_name: str, usage_name: str) -> _CgroupLimit | None:
    try:
        limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None  # no such group in this view, or the root, which has no limit
    if limit == "max":
        return None
    # Clean pages of files are counted as used, but go as soon as memory is wanted.
    reclaimable = sum(int(statistics.get(name, 0)) for name in ("active_file", "inactive_file"))
    return _CgroupLimit(int(limit), int(limit) - usage + reclaimable)


def gpus(env: Mapping[str, str] | None = None) -> tuple[Gpu, ...]:
    """Those that a worker with this environment may have, the hive's own for None; none where no driver tells of any.

    One that cannot be used is left out, and said in the hive's log: the others serve.
    """
    env = os.environ if env is None else env
    return visible(that_answer(), env, granted_by_pbs(env)).gpus


#: A driver that starts eight GPUs anew takes some seconds.
_DRIVERS: TimeLimit[list[Gpu]] = TimeLimit(20.0)
_stay_awake = StayAwake(10.0)


def that_answer() -> list[Gpu]:
    """All of the node, whatever the environment hides; none while a driver does not answer. Takes seconds where the
    driver starts its GPUs anew: an event loop asks in a thread first."""
    found = _DRIVERS.ask(_ask_drivers)
    if found is None:
        _say_once("a GPU's driver does not answer in time: no GPU is used until it does")
    return found or []


def _ask_drivers() -> list[Gpu]:
    _stay_awake()
    with gpu_nvml.opened() as nvml:
        seen = [] if isinstance(nvml, gpu_nvml.Trouble) else list(gpu_nvml.gpus(nvml))
    found = [each.gpu if isinstance(each, gpu_nvml.Seen) else each for each in seen] + list(amd_gpus())
    for gpu in found:
        if isinstance(gpu, SilentGpu):
            _say_once(f"GPU {gpu.index} cannot be used: {gpu.said or gpu.reason}")
    return [gpu for gpu in found if not isinstance(gpu, SilentGpu)]


@functools.cache
def _say_once(message: str) -> None:
    _log.warning("%s", message)
