"""llama.cpp behind the interface of `interface.Engine`: the one place that imports llama_cpp.

llama-cpp-python's ctypes bindings of the C API are used, not its `Llama`, which serves one request at a time.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling, WorkerConfig
from rbee_remote.worker import backends, cpus
from rbee_remote.worker.interface import BatchToken, LoadAborted, ModelInfo, Progress

#: Tokens of a step at most: enough to keep a GPU busy with a prompt, and on a CPU about a second's worth of work
#: during which another request's next token waits.
N_BATCH = 512

#: How many of the last tokens repeat_penalty looks at: llama.cpp's default.
PENALTY_WINDOW = 64

MAX_THREADS = 512  # GGML_MAX_N_THREADS

_ABORTED = 2  # llama_decode's result after its abort callback said yes

_log = logging.getLogger("rbee.llama")


class LlamaEngine:
    """A model in llama.cpp with `slots` sequences of `ctx` tokens each. Made by `load_engine`."""

    n_batch = N_BATCH

    def __init__(self, config: WorkerConfig, progress: Progress) -> None:
        """Raises RemoteError USAGE, MODEL_NOT_FOUND, MODEL_INVALID, RAM_EXHAUSTED, VRAM_EXHAUSTED or
        BACKEND_UNAVAILABLE; LoadAborted when `progress` said so."""
        _check_options(config)
        _check_file(Path(config.path))
        with contextlib.ExitStack() as owned:
            available = backends.load(llama._lib, Path(llama.__file__).parent.parent)
            self._gpus = backends.choose(available, config.options.backend, config.options.gpu_layers)
            self._model = self._load_model(config, progress)
            owned.callback(llama.llama_model_free, self._model)
            self._vocab = llama.llama_model_get_vocab(self._model)
            self._context = self._make_context(config)
            owned.callback(llama.llama_free, self._context)
            self._memory = llama.llama_get_memory(self._context)
            self._batch = llama.llama_batch_init(N_BATCH, 0, 1)
            owned.callback(llama.llama_batch_free, self._batch)
            self._samplers: dict[int, llama.llama_sampler_p] = {}
            owned.callback(self._free_samplers)
            self._install_interrupt()
            self.info = self._read_info()
            self._owned = owned.pop_all()

    def close(self) -> None:
        self._owned.close()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 8  # a token has at least one byte, BOS and EOS have none
        while True:
            tokens = (llama.llama_token * room)()
            count = llama.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def piece(self, token: int) -> bytes:
        return self._text(token, special=False)

    def is_end(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def start(self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int]) -> None:
        self.clear(seq)
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        self._samplers[seq] = chain
        for sampler in self._chain(sampling, seed):
            llama.llama_sampler_chain_add(chain, sampler)
        for token in prompt[-PENALTY_WINDOW:]:
            llama.llama_sampler_accept(chain, token)

    def decode(self, batch: Sequence[BatchToken]) -> bool:
        c_batch = self._batch
        c_batch.n_tokens = len(batch)
        for index, (token, pos, seq, logits) in enumerate(batch):
            c_batch.token[index] = token
            c_batch.pos[index] = pos
            c_batch.n_seq_id[index] = 1
            c_batch.seq_id[index][0] = seq
            c_batch.logits[index] = logits
        result = llama.llama_decode(self._context, c_batch)
        if result not in (0, _ABORTED):
            raise RuntimeError(f"llama_decode failed with {result} on a batch of {len(batch)} tokens")
        return bool(result == 0)

    def sample(self, seq: int, row: int) -> int:
        return int(llama.llama_sampler_sample(self._samplers[seq], self._context, row))

    def forget(self, seq: int, pos: int) -> bool:
        if llama.llama_memory_seq_rm(self._memory, seq, pos, -1):
            return True
        llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
        return False

    def clear(self, seq: int) -> None:
        llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
        chain = self._samplers.pop(seq, None)
        if chain is not None:
            llama.llama_sampler_free(chain)

    def interrupt(self) -> None:
        self._interrupted[0] = b"\x01"

    def rearm(self) -> None:
        self._interrupted[0] = b"\x00"

    def _install_interrupt(self) -> None:
        """llama.cpp asks an abort callback after each of some 500 graph nodes of a step, so it must not be Python's,
        which would wait for the interpreter's lock each time. The C library has a function that answers "is this byte
        set" at the price of a call: strlen of a string of one byte or none."""
        self._interrupted = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)
        llama.llama_set_abort_callback(self._context, strlen, ctypes.cast(self._interrupted, ctypes.c_void_p))

    def _load_model(self, config: WorkerConfig, progress: Progress) -> llama.llama_model_p:
        aborted = False

        def report(share: float, _: object) -> bool:
            nonlocal aborted
            aborted = aborted or not progress(share)
            return not aborted

        params = llama.llama_model_default_params()
        handles = [device.handle for device in self._gpus]
        self._devices = (ctypes.c_void_p * (len(handles) + 1))(*handles, None)  # ends with NULL
        params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        gpu_layers = config.options.gpu_layers
        params.n_gpu_layers = 0 if not self._gpus else -1 if gpu_layers is None else gpu_layers
        params.progress_callback = llama.llama_progress_callback(report)
        with _collected_errors() as errors:
            model = llama.llama_model_load_from_file(config.path.encode(), params)
        if aborted:
            raise LoadAborted
        if not model:
            raise self._load_error(ErrorCode.MODEL_INVALID, "llama.cpp cannot load the model", errors)
        return model

    def _make_context(self, config: WorkerConfig) -> llama.llama_context_p:
        params = llama.llama_context_default_params()
        # Each sequence has a cache of its own (kv_unified off), and llama.cpp divides n_ctx among them.
        params.n_ctx = config.ctx * config.options.slots
        params.n_seq_max = config.options.slots
        params.kv_unified = False
        params.n_batch = N_BATCH
        params.n_ubatch = N_BATCH
        params.n_threads = params.n_threads_batch = config.options.threads or cpus.usable_cores()
        params.no_perf = True
        with _collected_errors() as errors:
            context = llama.llama_init_from_model(self._model, params)
        if not context:
            what = f"no room for {config.options.slots} x {config.ctx} tokens of context"
            raise self._load_error(ErrorCode.RAM_EXHAUSTED, what, errors)
        return context

    def _load_error(self, code: ErrorCode, what: str, errors: Sequence[str]) -> RemoteError:
        """llama.cpp tells only its log what went wrong."""
        said = "; ".join(errors)
        if any(word in said.lower() for word in ("out of memory", "failed to allocate", "unable to allocate")):
            code = ErrorCode.RAM_EXHAUSTED
        if code is ErrorCode.RAM_EXHAUSTED and self._gpus:
            code = ErrorCode.VRAM_EXHAUSTED
        hints = {ErrorCode.MODEL_INVALID: "the file may be broken, or too new for this llama.cpp"}
        hint = hints.get(code, "use a smaller context, fewer slots or a smaller quantisation")
        return RemoteError(code, what, hint=hint, details={"llama.cpp": said} if said else {})

    def _read_info(self) -> ModelInfo:
        template = llama.llama_model_chat_template(self._model, None)
        bos, eos = llama.llama_vocab_bos(self._vocab), llama.llama_vocab_eos(self._vocab)
        return ModelInfo(
            n_ctx_train=llama.llama_model_n_ctx_train(self._model),
            n_vocab=llama.llama_vocab_n_tokens(self._vocab),
            chat_template=template.decode(errors="replace") if template else None,
            bos=self._text(bos, special=True).decode(errors="replace") if bos >= 0 else "",
            eos=self._text(eos, special=True).decode(errors="replace") if eos >= 0 else "",
            adds_bos=llama.llama_vocab_get_add_bos(self._vocab),
            adds_eos=llama.llama_vocab_get_add_eos(self._vocab),
            backend=self._gpus[0].backend if self._gpus else "cpu",
            device=", ".join(device.name for device in self._gpus) or "cpu",
        )

    def _text(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def _chain(self, sampling: Sampling, seed: int) -> Iterator[llama.llama_sampler_p]:
        """In llama.cpp's own order. Samplers that are switched off are left out, not asked to do nothing."""
        if sampling.repeat_penalty != 1:
            n_vocab = llama.llama_vocab_n_tokens(self._vocab)
            yield llama.llama_sampler_init_penalties(n_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        if sampling.temperature == 0:
            yield llama.llama_sampler_init_greedy()
            return
        if sampling.top_k > 0:
            yield llama.llama_sampler_init_top_k(sampling.top_k)
        if sampling.top_p < 1:
            yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
        if sampling.min_p > 0:
            yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
        yield llama.llama_sampler_init_temp(sampling.temperature)
        yield llama.llama_sampler_init_dist(seed)

    def _free_samplers(self) -> None:
        for chain in self._samplers.values():
            llama.llama_sampler_free(chain)
        self._samplers.clear()


def load_engine(config: WorkerConfig, progress: Progress) -> LlamaEngine:
    """`interface.LoadEngine` of llama.cpp."""
    llama.llama_log_set(_log_callback, None)
    llama.llama_backend_init()
    return LlamaEngine(config, progress)


def _check_options(config: WorkerConfig) -> None:
    """llama.cpp aborts the process over some of these, and wraps others around."""
    options = config.options
    most_slots = min(int(llama.llama_max_parallel_sequences()), N_BATCH)
    for name, value, most in (
        ("slots", options.slots, most_slots),
        ("ctx", config.ctx, (2**31 - 1) // max(options.slots, 1)),
        ("threads", options.threads or 1, MAX_THREADS),
    ):
        if not 1 <= value <= most:
            raise RemoteError(ErrorCode.USAGE, f"{name} must be from 1 to {most}, got {value}")


def _check_file(path: Path) -> None:
    """llama.cpp says the same of every file it does not like."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"cannot read the model: {error.strerror}: {path}") from error
    if magic != b"GGUF":
        raise RemoteError(ErrorCode.MODEL_INVALID, f"not a GGUF file: {path}")


_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}  # enum ggml_log_level in ggml.h
_CONTINUED = 5
_line: tuple[int, str] = (logging.DEBUG, "")
_errors: collections.deque[str] = collections.deque(maxlen=4)


def _on_log(level: int, text: bytes | None, _: object) -> None:
    """Whole lines of llama.cpp's log to ours."""
    global _line  # noqa: PLW0603 - llama.cpp has one log per process, and sends lines in pieces
    python_level = _line[0] if level == _CONTINUED else _LEVELS.get(level, logging.DEBUG)
    whole = (_line[1] if level == _CONTINUED else "") + (text or b"").decode(errors="replace")
    _line = (python_level, whole)
    if not whole.endswith("\n"):
        return
    _line = (python_level, "")
    if whole.strip(" .\n"):
        _log.log(python_level, "%s", whole.rstrip())
    if python_level >= logging.ERROR:
        _errors.append(whole.strip())


#: Lives as long as the module, because llama.cpp keeps the pointer.
_log_callback = llama.llama_log_callback(_on_log)


@contextlib.contextmanager
def _collected_errors() -> Iterator[collections.deque[str]]:
    """The last error lines that llama.cpp logs meanwhile."""
    _errors.clear()
    yield _errors
