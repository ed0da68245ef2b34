"""Asking llama.cpp what a model would take of memory, in a process of its own, and keeping the answers.

Rules
- An answer is kept for as long as the hive lives and the model's file is the same; so is that there was none, which
  leaves the formula of `needs`.
- One process at a time: those who ask the same meanwhile find it answered.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from rbee_remote.protocol import ErrorCode, ProtocolError, RemoteError, WorkerOptions, decode, encode
from rbee_remote.protocol.load_options import NO_ADAPTERS
from rbee_remote.protocol.measuring import MeasureAnswer, MeasureRequest, Point
from rbee_remote.sandbox import AUTO
from rbee_remote.system.gpu import Gpu
from rbee_remote.system.gpu_choice import seeing_no_others
from rbee_remote.system.gpu_visible import environment
from rbee_remote.system.helper import run_helper
from rbee_remote.system.model_files import look

_log = logging.getLogger(__name__)

#: It reads a vocabulary, and initialises GPUs where there are some.
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model's file as it is now, and how it would be loaded.

    options: without ctx, slots, threads and adapters, which do not belong to it. sandbox: as in SpawnRequest; what
    cannot be measured in one may be without it. gpus: that the process is to see, in their order; empty for all. env:
    what it is given besides.
    """

    path: str
    size: int
    changed_ns: int
    options: WorkerOptions
    sandbox: str = AUTO
    gpus: tuple[Gpu, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Points that llama.cpp has not been asked for yet."""

    subject: Subject
    points: tuple[Point, ...]


def subject_of(
    path: str,
    options: WorkerOptions,
    sandbox: str = AUTO,
    gpus: tuple[Gpu, ...] = (),
    env: tuple[tuple[str, str], ...] = (),
) -> Subject:
    """Raises RemoteError MODEL_NOT_FOUND."""
    try:
        seen = look(Path(path))
    except OSError as error:
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"cannot read the model: {error.strerror}: {path}") from error
    seen_so = seeing_no_others(options, gpus) if gpus else options
    kept = replace(seen_so, ctx=None, slots=None, threads=None, **NO_ADAPTERS)
    same = tuple(replace(gpu, free_mb=0, reserved=False) for gpu in gpus)  # however much of it is free
    return Subject(path, seen.size, seen.changed_ns, kept, sandbox, same, env)


class Meter:
    """Used from the hive's event loop alone."""

    def __init__(self) -> None:
        self._answers: dict[Subject, MeasureAnswer] = {}
        self._asked: dict[Subject, set[Point]] = {}
        self._turn = anyio.Lock()

    def answer(self, subject: Subject) -> MeasureAnswer | None:
        return self._answers.get(subject)

    def missing(self, subject: Subject, points: tuple[Point, ...]) -> Job | None:
        """None when all has been asked for, whether or not there was an answer."""
        asked = self._asked.get(subject, set())
        left = tuple(point for point in points if point not in asked)
        return Job(subject, left) if left else None

    async def measure(self, job: Job) -> None:
        """Returns when the points of the job are no longer missing."""
        async with self._turn:
            left = self.missing(job.subject, job.points)
            if left is None:
                return
            try:
                self._take(job.subject, await _ask(left))
            except (RemoteError, ProtocolError, TimeoutError) as error:
                _log.warning("llama.cpp does not tell what %s would take: %s", job.subject.path, error)
            self._asked.setdefault(job.subject, set()).update(left.points)

    def _take(self, subject: Subject, answer: MeasureAnswer) -> None:
        known = self._answers.get(subject)
        self._answers[subject] = replace(answer, points=(*known.points, *answer.points)) if known else answer


async def _ask(job: Job) -> MeasureAnswer:
    """Raises RemoteError, ProtocolError, TimeoutError."""
    request = MeasureRequest(job.subject.path, job.subject.options, job.points, job.subject.sandbox)
    env = environment(job.subject.gpus, os.environ) | dict(job.subject.env)
    return decode(MeasureAnswer, await run_helper("measure", request=encode(request), timeout_s=_TIMEOUT_S, env=env))
