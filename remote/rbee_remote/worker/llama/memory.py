"""What a model would take of memory, at several context sizes and slot counts.

llama.cpp loads a model without its tensors (no_alloc) and makes contexts without their caches, and logs how large each
buffer would be. Its C API does not tell otherwise: llama_get_memory_breakdown is C++. Loading the vocabulary takes
most of the time, a tenth of a second for a small model; a point takes a few milliseconds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import psutil
from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from rbee_remote.protocol.measuring import MeasureAnswer, Measured, MeasureRequest, Point
from rbee_remote.worker.llama import backends, load, log

_MIB = 2**20

#: `llama_kv_cache: size =   45.00 MiB (  2048 cells,  30 layers, …`, and the same of recurrent states.
_CACHE = re.compile(r": size = +([\d.]+) MiB \( *\d+ cells")
#: `sched_reserve:        CPU compute buffer size =   102.51 MiB`, `llama_context:  CPU  output buffer size = …`.
_BUFFER = re.compile(r": +(\S+) +(?:compute|output) buffer size = +([\d.]+) MiB")
#: Buffers in RAM: the CPU's, and those of a GPU's driver that it reads from RAM (CUDA_Host).
_IN_RAM = re.compile(r"CPU.*|.*_Host")


def measure(request: MeasureRequest) -> MeasureAnswer:
    """Raises RemoteError MODEL_NOT_FOUND, MODEL_INVALID, USAGE, BACKEND_UNAVAILABLE."""
    log.install()
    llama.llama_backend_init()
    options = request.options
    load.check_file(Path(request.path))
    available = backends.load(llama._lib, Path(llama.__file__).parent.parent)
    gpus = backends.choose(available, options)
    params = load.model_params(options, gpus)
    params.no_alloc, params.load_mode = True, llama.LLAMA_LOAD_MODE_NONE
    with contextlib.ExitStack() as owned:
        with log.collected_lines(load.REPACKED) as repacked, log.collected_errors() as errors:
            model = llama.llama_model_load_from_file(request.path.encode(), params)
        if not model:
            raise RemoteError(
                ErrorCode.MODEL_INVALID, "llama.cpp cannot load the model", details={"llama.cpp": list(errors)}
            )
        owned.callback(llama.llama_model_free, model)
        points = tuple(_measure_at(model, options, point, on_gpu=bool(gpus)) for point in request.points)
        return MeasureAnswer(psutil.Process().memory_info().rss, bool(repacked), points)


def _measure_at(model: llama.llama_model_p, options: WorkerOptions, point: Point, *, on_gpu: bool) -> Measured:
    use = load.read_use(model, options)
    params = load.context_params(options, use, ctx=point.ctx, slots=point.slots)
    whole = _buffers(model, params)[1] if on_gpu else ()
    device = sum(size for name, size in whole if not _IN_RAM.fullmatch(name))
    # Logits of every token of a micro-batch have their place in RAM, but a worker writes one per slot.
    if not use.whole:
        params.n_outputs_max = point.slots
    kv, buffers = _buffers(model, params)
    host = sum(size for name, size in buffers if _IN_RAM.fullmatch(name))
    return Measured(point, kv, host, device)


def _buffers(model: llama.llama_model_p, params: llama.llama_context_params) -> tuple[int, Sequence[tuple[str, int]]]:
    """Bytes of the cache, and of each other buffer with its name. Raises RemoteError MODEL_INVALID."""
    with log.collected_lines("size =") as lines, log.collected_errors() as errors:
        context = llama.llama_init_from_model(model, params)
    if not context:
        raise RemoteError(
            ErrorCode.MODEL_INVALID, "llama.cpp cannot make a context", details={"llama.cpp": list(errors)}
        )
    has_memory = bool(llama.llama_get_memory(context))
    llama.llama_free(context)
    caches = [_bytes(found[1]) for line in lines if (found := _CACHE.search(line))]
    buffers = [(found[1], _bytes(found[2])) for line in lines if (found := _BUFFER.search(line))]
    if not buffers or (has_memory and not caches):
        raise RemoteError(ErrorCode.MODEL_INVALID, "llama.cpp does not say what it would take")
    return sum(caches), buffers


def _bytes(mebibytes: str) -> int:
    return int(float(mebibytes) * _MIB) + 1
