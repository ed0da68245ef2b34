"""How fast a worker is."""

from __future__ import annotations

import dataclasses

#: Of each test.
MAX_REPETITIONS = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class BenchRequest:
    """POST /v1/admin/bench on a worker's socket: a stream of `BenchProgress`, and `BenchResult` or an error.

    prompt_tokens: of a prompt to compute; generated_tokens: to compute one by one; 0 leaves that test out.
    repetitions: of each test, after a warm-up that does not count.
    """

    prompt_tokens: int = 512
    generated_tokens: int = 128
    repetitions: int = 5


@dataclasses.dataclass(frozen=True, slots=True)
class BenchProgress:
    """Event `progress`. test: what runs now, as llama-bench names it (pp512, tg128). done: runs that are over."""

    test: str
    done: int
    total: int


@dataclasses.dataclass(frozen=True, slots=True)
class BenchTest:
    """seconds: what each repetition took for `tokens` tokens."""

    test: str
    tokens: int
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class BenchResult:
    """Event `done`. threads: of the CPU, for what it computes."""

    tests: tuple[BenchTest, ...]
    threads: int
