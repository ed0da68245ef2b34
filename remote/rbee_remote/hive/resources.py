"""What a node has (RAM, VRAM, backends), and what a model needs of it.

MB are 10**6 bytes. `RBEE_RAM_LIMIT_MB` in the hive's environment lowers what counts as available RAM.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rbee_remote.hive.scheduler import RAM, VRAM
from rbee_remote.protocol import ErrorCode, ModelMeta, RemoteError, WorkerOptions

_log = logging.getLogger(__name__)

MB = 10**6
DEFAULT_CTX = 4096

#: How llama.cpp names the library of a backend: libggml-<name>.so beside libllama, or where the wheel puts it.
_BACKEND_LIBRARIES = {"cuda": "cuda", "metal": "metal", "rocm": "hip", "vulkan": "vulkan"}

# What a worker takes beside weights and KV cache: see `compute_bytes`.
_UBATCH = 512  # the worker's micro-batch in tokens
_PROCESS_BYTES = 60 * MB  # Python, the HTTP server and llama.cpp's libraries
_VOCAB_ENTRY_BYTES = 400  # llama.cpp's tables for one token of the vocabulary
_ACTIVATIONS = 16  # f32 vectors of n_embd per token that are alive at once, the feed-forward's wider ones included
_CUDA_CONTEXT_BYTES = 500 * MB


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    name: str
    total_mb: int
    free_mb: int


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


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a worker computes. memory: which kind holds the weights. device: "cpu", or the GPU's name."""

    backend: str
    device: str
    memory: str


def need(meta: ModelMeta, size: int, *, ctx: int, slots: int, memory: str = RAM) -> Need:
    """size: of the model's file in bytes. ctx: tokens per slot. memory: RAM or VRAM."""
    cells = ctx * slots
    return Need(weights=size, kv=kv_bytes(meta, cells), compute=compute_bytes(meta, cells, memory))


def kv_bytes(meta: ModelMeta, cells: int) -> int:
    """The KV cache in f16, 2 bytes a value: llama.cpp, src/llama-kv-cache.cpp, size_k_bytes and size_v_bytes.

    The number of cells is padded to 256 there (llama_context: GGML_PAD(n_ctx, 256)).
    """
    padded = -(-cells // 256) * 256
    return meta.n_layers * padded * meta.n_head_kv * (meta.head_dim_k + meta.head_dim_v) * 2


def compute_bytes(meta: ModelMeta, cells: int, memory: str = RAM) -> int:
    """What computing takes, the process itself included, for a micro-batch of 512 tokens and flash attention.

    llama.cpp reserves a buffer for the worst graph (graph_reserve in src/llama-context.cpp): activations in f32, the
    attention mask in f16, the logits of every token in f32. On a GPU all of it is taken. In RAM only what is written to
    counts, and the worker asks for one token's logits per slot. Compared with the resident memory of a worker with
    SmolLM2-135M after a prompt that fills its context, for RAM: 2 to 4 % more than it was, from 2048 to 8192 cells.
    """
    graph = _UBATCH * (meta.n_embd * 4 * _ACTIVATIONS + cells * 2)
    if memory == VRAM:
        return _CUDA_CONTEXT_BYTES + graph + _UBATCH * meta.n_vocab * 4
    return _PROCESS_BYTES + graph + meta.n_vocab * _VOCAB_ENTRY_BYTES


def resolve_options(options: WorkerOptions, meta: ModelMeta, backend: str) -> WorkerOptions:
    """The options with nothing left open, so that equal loads compare equal. Raises RemoteError USAGE."""
    ctx = min(DEFAULT_CTX, meta.n_ctx_train) if options.ctx is None else options.ctx
    if not 1 <= ctx <= 2**24:
        raise RemoteError(ErrorCode.USAGE, f"ctx has to be between 1 and {2**24}, not {ctx}")
    if not 1 <= options.slots <= 256:
        raise RemoteError(ErrorCode.USAGE, f"slots has to be between 1 and 256, not {options.slots}")
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise RemoteError(ErrorCode.USAGE, f"threads has to be between 1 and 1024, not {options.threads}")
    if options.gpu_layers is not None and not 0 <= options.gpu_layers <= 4096:
        raise RemoteError(ErrorCode.USAGE, f"gpu_layers has to be between 0 and 4096, not {options.gpu_layers}")
    gpu_layers = 0 if backend == "cpu" else options.gpu_layers
    return WorkerOptions(
        ctx=ctx,
        slots=options.slots,
        backend=backend,
        gpu_layers=gpu_layers,
        threads=options.threads or physical_cores(),
    )


def physical_cores() -> int:
    """Physical cores that this process may use. Hyper-threads of one core share its arithmetic units."""
    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))


def place(backend: str, gpu_layers: int | None, gpus: tuple[Gpu, ...]) -> Placement:
    """Where a worker with this backend computes. Raises RemoteError BACKEND_UNAVAILABLE, USAGE."""
    known = ("auto", "cpu", *_BACKEND_LIBRARIES)
    if backend not in known:
        raise RemoteError(ErrorCode.USAGE, f"{backend!r} is no backend", hint=f"one of {', '.join(known)}")
    if backend == "auto":
        backend = _best_backend(gpus)
    if backend == "cpu" or gpu_layers == 0:
        return Placement(backend, "cpu", RAM)
    if backend not in runtime_backends():
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            f"the runtime on this node was built without {backend}",
            hint="choose --backend auto, or a runtime for this backend",
        )
    if backend == "cuda":
        if not gpus:
            raise RemoteError(ErrorCode.BACKEND_UNAVAILABLE, "this node shows no NVIDIA GPU", hint="--backend cpu")
        return Placement(backend, max(gpus, key=lambda gpu: gpu.free_mb).name, VRAM)
    # Vulkan, ROCm and Metal devices are not measured: Metal's memory is RAM, the others fail while loading.
    return Placement(backend, backend, RAM)


def _best_backend(gpus: tuple[Gpu, ...]) -> str:
    available = runtime_backends()
    if "cuda" in available and gpus:
        return "cuda"
    return next((name for name in ("metal", "rocm") if name in available), "cpu")


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


def _up(size: int) -> int:
    return -(-size // MB)
