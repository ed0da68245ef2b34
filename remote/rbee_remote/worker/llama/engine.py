"""llama.cpp behind the interface of `interface.Engine`.

llama-cpp-python's ctypes bindings of the C API are used, not its `Llama`, which serves one request at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling, WorkerConfig
from rbee_remote.protocol.abilities import Use
from rbee_remote.worker.engine import interface
from rbee_remote.worker.engine.interface import BatchToken, Constraint, Fim, LoadedModel, Progress, Rerank, Sampled
from rbee_remote.worker.llama import backends, load, log
from rbee_remote.worker.llama.adapters import Adapters
from rbee_remote.worker.llama.constraints import Constraints
from rbee_remote.worker.llama.samplers import Sampler, Samplers
from rbee_remote.worker.llama.timing import bench

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ABORTED = 2  # llama_decode's result after its abort callback said yes
_SPECIAL = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED | llama.LLAMA_TOKEN_ATTR_UNKNOWN


class LlamaEngine:
    """A model in llama.cpp with `slots` sequences of `ctx` tokens each. Made by `load_engine`."""

    def __init__(self, config: WorkerConfig, progress: Progress) -> None:
        """Raises RemoteError USAGE, MODEL_NOT_FOUND, MODEL_INVALID, RAM_EXHAUSTED, VRAM_EXHAUSTED or
        BACKEND_UNAVAILABLE; LoadAborted when `progress` said so."""
        load.check_options(config)
        load.check_file(Path(config.path))
        with contextlib.ExitStack() as owned:
            available = backends.load(llama._lib, Path(llama.__file__).parent.parent)
            self._gpus = backends.choose(available, config.options)
            self._model = load.load_model(config, self._gpus, progress)
            owned.callback(llama.llama_model_free, self._model)
            self._adapters = Adapters(self._model, config.adapters)
            self._vocab = llama.llama_model_get_vocab(self._model)
            self._context = load.make_context(self._model, config, on_gpu=bool(self._gpus))
            owned.callback(llama.llama_free, self._context)
            self._adapters.apply(self._context, self._adapters.scales)
            self._memory = llama.llama_get_memory(self._context)
            self._use = load.read_use(self._model, config.options)
            _check_kind(self._model, has_memory=bool(self._memory), use=self._use)
            self.n_batch = load.step_tokens(self._use, config.ctx)
            self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
            owned.callback(llama.llama_batch_free, self._batch)
            self._make_sampler = Samplers(self._vocab, config.ctx, self.piece).make
            self._samplers: dict[int, Sampler] = {}
            owned.callback(self._close_samplers)
            self._constraints = Constraints(self._vocab)
            owned.callback(self._constraints.close)
            self._install_interrupt()
            owned.callback(self.rearm)  # what ends it cuts its last step short
            self._embeddings = False
            self._pieces: dict[int, bytes] = {}  # as far as they were used
            is_rank = self._use.pooling == "rank"
            self._n_values = (llama.llama_model_n_cls_out if is_rank else llama.llama_model_n_embd_out)(self._model)
            self._is_pooled = is_rank or self._use.whole  # by llama.cpp
            self._n_swa = llama.llama_model_n_swa(self._model)
            # A recurrent state stands for all tokens before it, and cannot go back.
            self._only_whole = llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
            self.info = self._read_info(config.slots)
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
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._text(token, special=False)
        return piece

    def is_end(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def constraint(self, grammar: str) -> Constraint:
        return self._constraints.compile(grammar)

    def start(
        self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        matcher = None if constraint is None else self._constraints.matcher(constraint)
        self._samplers[seq] = self._make_sampler(sampling, seed, prompt, matcher)

    def decode(self, batch: Sequence[BatchToken], *, embeddings: bool = False, scales: Sequence[float] = ()) -> bool:
        self._set_embeddings(on=embeddings)
        self._adapters.apply(self._context, scales or self._adapters.scales)
        c_batch = self._batch
        c_batch.n_tokens = len(batch)
        for index, (token, pos, seq, output) in enumerate(batch):
            c_batch.token[index] = token
            c_batch.pos[index] = pos
            c_batch.n_seq_id[index] = 1
            c_batch.seq_id[index][0] = seq
            c_batch.logits[index] = output
        result = llama.llama_decode(self._context, c_batch)
        if result not in (0, _ABORTED):
            raise RuntimeError(f"llama_decode failed with {result} on a batch of {len(batch)} tokens")
        # A GPU is only told what to do by then. Whoever samples would wait for it, under the lock of the event loop.
        llama.llama_synchronize(self._context)
        return bool(result == 0)

    def sample(self, seq: int, row: int) -> Sampled:
        return self._samplers[seq].sample(self._context, row)

    def accept(self, seq: int, token: int) -> None:
        self._samplers[seq].accept(token)

    def embedding(self, row: int, seq: int) -> NDArray[np.float32]:
        import numpy as np

        get, of = (llama.llama_get_embeddings_seq, seq) if self._is_pooled else (llama.llama_get_embeddings_ith, row)
        return np.ctypeslib.as_array(get(self._context, of), (self._n_values,))

    def reusable(self, seq: int, count: int) -> int:
        if not self._memory:
            return 0
        first = llama.llama_memory_seq_pos_min(self._memory, seq)
        last = llama.llama_memory_seq_pos_max(self._memory, seq)
        if self._only_whole:
            return count if last == count - 1 else 0
        # With a sliding window the memory drops what lies far behind the last token.
        needed_from = max(0, count - self._n_swa) if self._n_swa else 0
        return count if 0 <= first <= needed_from and last >= count - 1 else 0

    def truncate(self, seq: int, count: int) -> bool:
        if not self._memory or llama.llama_memory_seq_rm(self._memory, seq, count, -1):
            return True
        llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
        return False

    def copy(self, source: int, target: int, count: int) -> bool:
        # Between sequences with caches of their own llama.cpp copies all or nothing.
        llama.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        return self.truncate(target, count)

    def set_threads(self, count: int) -> None:
        llama.llama_set_n_threads(self._context, count, count)

    def bench(self, prompt_tokens: int, generated_tokens: int) -> float | None:
        if not self._memory:
            raise RemoteError(ErrorCode.USAGE, "an encoder does not generate: there is no such speed to measure")
        self._set_embeddings(on=False)
        self._adapters.apply(self._context, self._adapters.scales)
        return bench(
            self._context,
            prompt_tokens,
            generated_tokens,
            n_batch=self.n_batch,
            interrupted=lambda: self._interrupted[0] != b"\x00",
        )

    def finish(self, seq: int) -> None:
        sampler = self._samplers.pop(seq, None)
        if sampler is not None:
            sampler.close()

    def take_sampler(self, seq: int) -> interface.Sampler | None:
        return self._samplers.pop(seq, None)

    def give_sampler(self, seq: int, sampler: interface.Sampler) -> None:
        assert isinstance(sampler, Sampler)
        self._samplers[seq] = sampler

    def interrupt(self) -> None:
        log.interrupted = True
        self._interrupted[0] = b"\x01"

    def rearm(self) -> None:
        self._interrupted[0] = b"\x00"
        log.interrupted = False

    def _set_embeddings(self, *, on: bool) -> None:
        if on != self._embeddings:
            self._embeddings = on
            llama.llama_set_embeddings(self._context, on)

    def _install_interrupt(self) -> None:
        """llama.cpp asks an abort callback after each of some 500 graph nodes of a step, so it must not be Python's,
        which would wait for the interpreter's lock each time. The C library has a function that answers "is this byte
        set" at the price of a call: strlen of a string of one byte or none."""
        self._interrupted = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)
        llama.llama_set_abort_callback(self._context, strlen, ctypes.cast(self._interrupted, ctypes.c_void_p))

    def _read_info(self, slots: int) -> LoadedModel:
        template = llama.llama_model_chat_template(self._model, None)
        bos, eos = llama.llama_vocab_bos(self._vocab), llama.llama_vocab_eos(self._vocab)
        special_tokens, user_defined = self._special_tokens()
        return LoadedModel(
            n_ctx_train=llama.llama_model_n_ctx_train(self._model),
            n_vocab=llama.llama_vocab_n_tokens(self._vocab),
            chat_template=template.decode(errors="replace") if template else None,
            bos=self._text(bos, special=True).decode(errors="replace") if bos >= 0 else "",
            eos=self._text(eos, special=True).decode(errors="replace") if eos >= 0 else "",
            adds_bos=llama.llama_vocab_get_add_bos(self._vocab),
            adds_eos=llama.llama_vocab_get_add_eos(self._vocab),
            backend=self._gpus[0].backend if self._gpus else "cpu",
            device=", ".join(device.name for device in self._gpus) or "cpu",
            architecture=load.architecture_of(self._model),
            use=self._use,
            sequences=load.sequences(self._use, slots),
            rerank=self._rerank(),
            fim=self._fim(),
            can_share=not self._only_whole,
            forgets=self._only_whole or self._n_swa > 0,
            special_tokens=special_tokens,
            user_defined=user_defined,
        )

    def _special_tokens(self) -> tuple[dict[str, int], frozenset[str]]:
        """Those that llama.cpp looks for in a text before all else, and the user-defined ones among them. Takes half a
        microsecond for each token of the vocabulary."""
        found, user_defined = {}, set()
        for token in range(llama.llama_vocab_n_tokens(self._vocab)):
            kind = llama.llama_vocab_get_attr(self._vocab, token)
            if not kind & _SPECIAL:
                continue
            text = llama.llama_vocab_get_text(self._vocab, token).decode(errors="replace")
            found[text] = token
            if kind & llama.LLAMA_TOKEN_ATTR_USER_DEFINED:
                user_defined.add(text)
        return found, frozenset(user_defined)

    def _fim(self) -> Fim:
        of = (llama.llama_vocab_fim_pre, llama.llama_vocab_fim_suf, llama.llama_vocab_fim_mid)
        return Fim(*(token(self._vocab) for token in (*of, llama.llama_vocab_fim_rep, llama.llama_vocab_fim_sep)))

    def _rerank(self) -> Rerank:
        """As llama-server puts the two together (format_prompt_rerank), with an end where there is none."""
        if self._use.pooling != "rank":
            return Rerank()
        if template := llama.llama_model_chat_template(self._model, b"rerank"):
            return Rerank(template.decode(errors="replace"))
        vocab = self._vocab
        sep = llama.llama_vocab_sep(vocab) if llama.llama_vocab_get_add_sep(vocab) else -1
        eos = llama.llama_vocab_eos(vocab)
        eos = (eos if eos >= 0 else llama.llama_vocab_sep(vocab)) if llama.llama_vocab_get_add_eos(vocab) else -1
        bos = llama.llama_vocab_bos(vocab) if llama.llama_vocab_get_add_bos(vocab) else -1
        begin, between, end = ((bos,), (eos, sep), (eos if eos >= 0 else sep,))
        return Rerank("", *(tuple(token for token in part if token >= 0) for part in (begin, between, end)))

    def _text(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def _close_samplers(self) -> None:
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()


def _check_kind(model: llama.llama_model_p, *, has_memory: bool, use: Use) -> None:
    """Raises RemoteError MODEL_INVALID for models that neither generate token by token nor embed."""
    if llama.llama_model_has_encoder(model) or not (has_memory or use.cacheless):
        kind = load.architecture_of(model) or "this architecture"
        what = f"models of {kind} are not supported: they neither generate token by token nor embed texts"
        raise RemoteError(ErrorCode.MODEL_INVALID, what)


def load_engine(config: WorkerConfig, progress: Progress) -> LlamaEngine:
    """`interface.LoadEngine` of llama.cpp."""
    log.install()
    llama.llama_backend_init()
    return LlamaEngine(config, progress)
