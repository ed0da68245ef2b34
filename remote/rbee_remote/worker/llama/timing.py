"""How fast a model computes, timed as llama-bench does it: test_prompt and test_gen of its llama-bench.cpp.

Random tokens, the first one BOS where the model wants one; no sampling; a memory that was empty. The tokens are chosen
and handed to ctypes before the clock starts, so that Python's share of the time is one call a step.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Iterator

from llama_cpp import llama_cpp as llama

_ABORTED = 2  # llama_decode's result after its abort callback said yes


def bench(
    context: llama.llama_context_p,
    prompt_tokens: int,
    generated_tokens: int,
    *,
    n_batch: int,
    interrupted: Callable[[], bool],
) -> float | None:
    """`Engine.bench`. n_batch: most tokens of a step. interrupted: asked before each step, because on a GPU llama.cpp
    does not ask its abort callback. Raises RuntimeError where the context does not hold that many tokens."""
    memory = llama.llama_get_memory(context)
    tokens = _random_tokens(context, prompt_tokens + generated_tokens)
    batches = list(_batches(tokens, prompt_tokens, n_batch))
    llama.llama_memory_clear(memory, False)
    try:
        began = time.perf_counter()
        for batch in batches:
            if interrupted() or not _decode(context, batch):
                return None
        return time.perf_counter() - began
    finally:
        llama.llama_memory_clear(memory, False)


def _decode(context: llama.llama_context_p, batch: llama.llama_batch) -> bool:
    """Compute a step to its end; False when it was aborted."""
    result = llama.llama_decode(context, batch)
    llama.llama_synchronize(context)
    if result not in (0, _ABORTED):
        raise RuntimeError(f"llama_decode failed with {result} on a batch of {batch.n_tokens} random tokens")
    return bool(result == 0)


def _batches(tokens: ctypes.Array[ctypes.c_int32], prompt_tokens: int, n_batch: int) -> Iterator[llama.llama_batch]:
    """The prompt in steps of `n_batch` tokens, the others one by one. They point into `tokens`."""
    starts = [*range(0, prompt_tokens, n_batch), *range(prompt_tokens, len(tokens))]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        first = ctypes.cast(ctypes.byref(tokens, start * ctypes.sizeof(llama.llama_token)), llama.llama_token_p)
        # Sequence 0, positions in a row, and an output after the last token are what such a batch stands for.
        yield llama.llama_batch_get_one(first, end - start)


def _random_tokens(context: llama.llama_context_p, count: int) -> ctypes.Array[ctypes.c_int32]:
    """The same ones each time, so that nodes and repetitions compute the same."""
    vocab = llama.llama_model_get_vocab(llama.llama_get_model(context))
    n_vocab = llama.llama_vocab_n_tokens(vocab)
    chosen = random.Random(count).choices(range(n_vocab), k=count)  # noqa: S311 - no secret
    if chosen and llama.llama_vocab_get_add_bos(vocab):
        chosen[0] = llama.llama_vocab_bos(vocab)
    tokens: ctypes.Array[ctypes.c_int32] = (llama.llama_token * count)(*chosen)
    return tokens
