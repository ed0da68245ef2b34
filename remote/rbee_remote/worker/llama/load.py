"""A model and its context in llama.cpp, from a WorkerConfig; and what went wrong, in our words."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerConfig, WorkerOptions
from rbee_remote.protocol.abilities import Use, pooled, use_of
from rbee_remote.protocol.load_options import FLASH_ATTENTION, KV_TYPES, OPTIONS, QUANTISED_KV, Choice
from rbee_remote.system.cores import usable_cores
from rbee_remote.system.model_files import files_of
from rbee_remote.worker.compute.plans import EMBEDDED_AT_ONCE
from rbee_remote.worker.engine.interface import LoadAborted, Progress
from rbee_remote.worker.llama.backends import Device
from rbee_remote.worker.llama.log import collected_errors, collected_lines

#: Tokens of a step at most: enough to keep a GPU busy with a prompt.
N_BATCH = 512
#: Texts of a step at most, where a text needs no memory beyond the step: with fewer, short ones would not fill it.
TEXTS_AT_ONCE = 64

MAX_THREADS = 512  # GGML_MAX_N_THREADS


def load_model(config: WorkerConfig, gpus: Sequence[Device], progress: Progress) -> llama.llama_model_p:
    """gpus: where to load it, none for the CPU.

    Raises LoadAborted when `progress` said so; RemoteError MODEL_INVALID, RAM_EXHAUSTED, VRAM_EXHAUSTED.
    """
    load = _Load(progress)
    params = model_params(config.options, gpus)
    params.progress_callback = callback = llama.llama_progress_callback(load.report)
    with collected_lines(REPACKED) as repacked, collected_errors() as errors:
        load.stop_when = lambda: bool(repacked)
        model = llama.llama_model_load_from_file(config.path.encode(), params)
        if load.stopped and not load.aborted:
            load.stop_when = None
            params.load_mode = llama.LLAMA_LOAD_MODE_NONE
            model = llama.llama_model_load_from_file(config.path.encode(), params)
    del callback  # llama.cpp calls it no more
    if load.aborted:
        raise LoadAborted
    if not model:
        raise _load_error(ErrorCode.MODEL_INVALID, "llama.cpp cannot load the model", errors, on_gpu=bool(gpus))
    return model


#: What llama.cpp says before it loads weights that it rearranges for the processor. They are copies, so a file that is
#: mapped beside them would only make the process look twice as large as it is: such a model is read instead.
REPACKED = "_REPACK model buffer size"


class _Load:
    """What llama.cpp's progress callback does. stopped: it ended the load; aborted: because the caller wanted it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.stop_when: Callable[[], bool] | None = None
        self.aborted = self.stopped = False

    def report(self, share: float, _: object) -> bool:
        self.aborted = self.aborted or not self._progress(share)
        self.stopped = self.aborted or (self.stop_when is not None and self.stop_when())
        return not self.stopped


def model_params(options: WorkerOptions, gpus: Sequence[Device]) -> llama.llama_model_params:
    """gpus: as `backends.choose` gives them. The options are checked by `check_options` and `choose`."""
    params = llama.llama_model_default_params()
    handles = (ctypes.c_void_p * (len(gpus) + 1))(*(device.handle for device in gpus), None)  # ends with NULL
    params.devices = ctypes.cast(handles, ctypes.c_void_p)
    params.n_gpu_layers = 0 if not gpus else -1 if options.gpu_layers is None else options.gpu_layers
    if gpus and options.tensor_split:
        shares = (ctypes.c_float * llama.llama_max_devices())(*options.tensor_split)
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    return params


def metadata(model: llama.llama_model_p, key: str) -> str:
    """A value of the GGUF's metadata; empty where there is none."""
    buffer = ctypes.create_string_buffer(128)
    length = llama.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if length >= 0 else ""


def architecture_of(model: llama.llama_model_p) -> str:
    return metadata(model, "general.architecture")


def read_use(model: llama.llama_model_p, options: WorkerOptions) -> Use:
    """By its file, and what was said instead."""
    architecture = architecture_of(model)
    pooling = metadata(model, f"{architecture}.pooling_type")
    causal = metadata(model, f"{architecture}.attention.causal") != "false"
    use = use_of(architecture, int(pooling) if pooling.isdecimal() else None, causal=causal)
    return dataclasses.replace(use, pooling=pooled(use.pooling, options.pooling))


def step_tokens(use: Use, ctx: int) -> int:
    """Most tokens of a step: at least one whole text, where it has to be computed at once."""
    return max(N_BATCH, ctx) if use.whole else N_BATCH


def sequences(use: Use, slots: int) -> int:
    return max(slots, TEXTS_AT_ONCE) if use.cacheless else slots


def context_params(options: WorkerOptions, use: Use, *, ctx: int, slots: int) -> llama.llama_context_params:
    """ctx: tokens per slot."""
    params = llama.llama_context_default_params()
    # Each sequence has a cache of its own (kv_unified off), and llama.cpp divides n_ctx among them: with a common one
    # every token of a step looks at the cells of all, which costs 8 % at 8 streams.
    params.n_seq_max = sequences(use, slots)
    params.n_ctx = ctx * params.n_seq_max
    # Texts of unequal length would then be computed in several goes, which tokens that see each other both ways forbid.
    params.kv_unified = use.whole
    # Layers that see a window keep no more than that: with all of it, five sixths of some models' cache would be there
    # only for prompts that branch off further back.
    params.swa_full = False
    # llama.cpp pools a text only where all of it is in one step; else we pool its tokens' states.
    params.pooling_type = _POOLINGS[use.pooling if use.whole or use.pooling == "rank" else ""]
    params.n_batch = params.n_ubatch = step_tokens(use, ctx)
    # Outputs of a step, each as wide as the vocabulary: by default there is room for n_batch of them.
    params.n_outputs_max = params.n_batch if use.whole else slots + EMBEDDED_AT_ONCE
    params.n_threads = params.n_threads_batch = options.threads or usable_cores()
    params.type_k = params.type_v = KV_TYPES[options.kv_type].ggml
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    params.no_perf = True
    return params


_POOLINGS = {
    "": llama.LLAMA_POOLING_TYPE_NONE,
    "mean": llama.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama.LLAMA_POOLING_TYPE_CLS,
    "last": llama.LLAMA_POOLING_TYPE_LAST,
    "rank": llama.LLAMA_POOLING_TYPE_RANK,
}


def make_context(model: llama.llama_model_p, config: WorkerConfig, *, on_gpu: bool) -> llama.llama_context_p:
    """Raises RemoteError RAM_EXHAUSTED or VRAM_EXHAUSTED; USAGE where the model's heads do not take the KV type."""
    params = context_params(config.options, read_use(model, config.options), ctx=config.ctx, slots=config.slots)
    with collected_errors() as errors:
        context = llama.llama_init_from_model(model, params)
    if not context:
        if any("does not divide" in error for error in errors):
            what = f"this model's heads do not fit into the blocks of {config.options.kv_type}"
            raise RemoteError(ErrorCode.USAGE, what, hint="use --kv-type f16", details={"llama.cpp": "; ".join(errors)})
        what = f"no room for {config.slots} x {config.ctx} tokens of context"
        raise _load_error(ErrorCode.RAM_EXHAUSTED, what, errors, on_gpu=on_gpu)
    return context


def check_options(config: WorkerConfig) -> None:
    """llama.cpp aborts the process over some of these, and wraps others around. Raises RemoteError USAGE."""
    options = config.options
    most_slots = min(int(llama.llama_max_parallel_sequences()), N_BATCH)
    for name, value, most in (
        ("slots", config.slots, most_slots),
        ("ctx", config.ctx, (2**31 - 1) // max(config.slots, 1)),
        ("threads", options.threads or 1, MAX_THREADS),
    ):
        if not 1 <= value <= most:
            raise RemoteError(ErrorCode.USAGE, f"{name} must be from 1 to {most}, got {value}")
    for name, option in OPTIONS.items():
        form, choice = option.form, getattr(options, name)
        if isinstance(form, Choice) and choice not in form.values:
            raise RemoteError(ErrorCode.USAGE, f"{name} must be one of {', '.join(form.values)}, got {choice!r}")
    if options.flash_attention == "off" and options.kv_type in QUANTISED_KV:
        raise RemoteError(ErrorCode.USAGE, f"a KV cache of {options.kv_type} needs flash attention")


def check_file(path: Path) -> None:
    """llama.cpp says the same of every file it does not like. Raises RemoteError MODEL_NOT_FOUND, MODEL_INVALID."""
    for part in files_of(path):  # which llama.cpp finds by the first one's name
        try:
            with part.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"cannot read the model: {error.strerror}: {part}") from error
        if magic != b"GGUF":
            raise RemoteError(ErrorCode.MODEL_INVALID, f"not a GGUF file: {part}")


def _load_error(code: ErrorCode, what: str, errors: Sequence[str], *, on_gpu: bool) -> RemoteError:
    """llama.cpp tells only its log what went wrong."""
    said = "; ".join(errors)
    if any(word in said.lower() for word in ("out of memory", "failed to allocate", "unable to allocate")):
        code = ErrorCode.RAM_EXHAUSTED
    if code is ErrorCode.RAM_EXHAUSTED and on_gpu:
        code = ErrorCode.VRAM_EXHAUSTED
    hints = {ErrorCode.MODEL_INVALID: "the file may be broken, or too new for this llama.cpp"}
    hint = hints.get(code, "use a smaller context, fewer slots or a smaller quantisation")
    return RemoteError(code, what, hint=hint, details={"llama.cpp": said} if said else {})
