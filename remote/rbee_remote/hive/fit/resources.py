"""What a node has: RAM, VRAM, backends; and where a worker would compute.

MB are 10**6 bytes. `RBEE_RAM_LIMIT_MB` in the hive's environment lowers what counts as available RAM.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rbee_remote.hive.fit import ggml_devices
from rbee_remote.hive.fit.ggml_devices import GgmlGpu
from rbee_remote.hive.fit.scheduler import MB, RAM, VRAM
from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from rbee_remote.protocol.load_options import BACKENDS
from rbee_remote.system.gpu_choice import choose_gpus

_log = logging.getLogger(__name__)


#: How llama.cpp names the library of a backend: libggml-<name>.so beside libllama, or where the wheel puts it.
_BACKEND_LIBRARIES = {"cuda": "cuda", "metal": "metal", "rocm": "hip", "vulkan": "vulkan"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """index: the driver's, in the order of the PCI bus."""

    index: int
    name: str
    total_mb: int
    free_mb: int

    @property
    def id(self) -> str:
        """ggml's name for it. The hive has workers count devices as the driver does."""
        return f"CUDA{self.index}"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a worker computes. memory: which kind holds the weights. device: "cpu", or the GPUs' names.

    gpus: those whose memory is known, as they were when the worker was placed. split: shares of the model for each of
    them, none for by free memory.
    """

    backend: str
    device: str
    memory: str
    gpus: tuple[Gpu | GgmlGpu, ...] = ()
    split: tuple[float, ...] = ()

    @property
    def gpu_ids(self) -> frozenset[str]:
        return frozenset(gpu.id for gpu in self.gpus)


def place(options: WorkerOptions, gpus: tuple[Gpu, ...], others: tuple[GgmlGpu, ...] = ()) -> Placement:
    """Where a worker with these options computes. others: what ggml was asked for.

    Raises RemoteError BACKEND_UNAVAILABLE, USAGE.
    """
    backend = options.backend
    if backend not in BACKENDS:
        raise RemoteError(ErrorCode.USAGE, f"{backend!r} is not a backend", hint=f"one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = _best_backend(gpus, others)
    if backend == "cpu" or options.gpu_layers == 0:
        if options.devices or options.tensor_split:
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
    if backend == "cuda":
        if not gpus:
            raise RemoteError(
                ErrorCode.BACKEND_UNAVAILABLE,
                "this node has no NVIDIA GPU",
                hint='set backend = "cpu" for the node in the inventory',
            )
        chosen = choose_gpus(gpus, options)
        return Placement(backend, ", ".join(gpu.name for gpu in chosen), VRAM, chosen, options.tensor_split)
    if backend in ggml_devices.ASKED:
        return _place_by_ggml(backend, options, others)
    return Placement(backend, backend, RAM)  # Metal's memory is RAM


def _place_by_ggml(backend: str, options: WorkerOptions, others: tuple[GgmlGpu, ...]) -> Placement:
    """An integrated GPU's memory is RAM. Raises RemoteError BACKEND_UNAVAILABLE, USAGE."""
    chosen = ggml_devices.chosen(others, backend, options)
    if not chosen:
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            f"llama.cpp finds no GPU for {backend} on this node",
            hint='`rbee nodes check` says what keeps one from being used; backend = "auto" computes without it',
        )
    names = ", ".join(gpu.name for gpu in chosen)
    if all(gpu.is_integrated for gpu in chosen):
        return Placement(backend, names, RAM)
    return Placement(backend, names, VRAM, chosen, options.tensor_split)


def free_vram_mb(placement: Placement, gpus: Sequence[Gpu]) -> int:
    """How large a model the chosen GPUs could hold together. Split in given shares, the first one that is full is the
    limit. gpus: all of the node that NVIDIA's library knows, as they are now; the others were asked for when the
    placement was made."""
    asked = [gpu for gpu in placement.gpus if isinstance(gpu, GgmlGpu)]
    by_id = {gpu.id: gpu.free_mb for gpu in asked} | {gpu.id: gpu.free_mb for gpu in gpus}
    free = [by_id.get(gpu.id, 0) for gpu in placement.gpus]
    if not placement.split:
        return sum(free)
    whole = sum(placement.split)
    return int(min(mb * whole / share for mb, share in zip(free, placement.split, strict=True) if share))


def _best_backend(gpus: tuple[Gpu, ...], others: tuple[GgmlGpu, ...]) -> str:
    available = runtime_backends()
    if "cuda" in available and gpus:
        return "cuda"
    if "metal" in available:
        return "metal"
    return ggml_devices.best_backend([gpu for gpu in others if gpu.backend in available]) or "cpu"


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
    limits = [available, *_cgroup_rooms()]
    if limit := os.environ.get("RBEE_RAM_LIMIT_MB"):
        if not limit.isdecimal():
            raise RemoteError(ErrorCode.USAGE, f"RBEE_RAM_LIMIT_MB has to be a number of megabytes, not {limit!r}")
        limits.append(int(limit) * MB)
    return max(0, min(limits)) // MB


def _cgroup_rooms(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes left below each memory limit from this process's control group up to the root, versions 1 and 2."""
    if not own.exists():
        return []
    rooms = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = base / path.lstrip("/")
        # Inside a container the path may be the host's: then the mounted root is the container's own group.
        for folder in {group, *(parent for parent in group.parents if parent.is_relative_to(base)), base}:
            room = _cgroup_room(folder, *names)
            if room is not None:
                rooms.append(room)
    return rooms


def _cgroup_room(folder: Path, limit_name: str, usage_name: str) -> int | None:
    try:
        limit, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None  # no such group in this view, or the root, which has no limit
    if limit == "max":
        return None
    # Clean pages of files are counted as used, but go as soon as memory is wanted.
    reclaimable = sum(int(statistics.get(name, 0)) for name in ("active_file", "inactive_file"))
    return int(limit) - usage + reclaimable


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs as the driver reports them; none where there is no driver, or one that will not say."""
    try:
        import pynvml as nvml
    except ImportError:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as error:
        _log.warning("the NVIDIA driver does not say what it has: %s", error)
        return ()
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(index, name, int(memory.total) // MB, int(memory.free) // MB)
