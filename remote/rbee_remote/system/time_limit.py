"""A question that may never be answered, asked in a thread: whoever asks waits for a limited time.

Calls into a GPU's driver can block in the kernel without end, where no signal and no cancellation reaches them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # the builtin one only since Python 3.11
from typing import Generic, TypeVar

T = TypeVar("T")


class TimeLimit(Generic[T]):
    """May be used from several threads. While one call is stuck nobody waits again, and no further thread is spent."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._stuck: Future[T] | None = None

    def ask(self, question: Callable[[], T]) -> T | None:
        """None where there is no answer in time. Raises what the question raises."""
        if self._stuck is not None and not self._stuck.done():
            return None
        answer: Future[T] = Future()
        threading.Thread(target=_answer, args=(question, answer), daemon=True, name="time-limit").start()
        try:
            return answer.result(self._limit_s)
        except FutureTimeout:
            if answer.done():  # just now, or the error is the question's own
                return answer.result()
            self._stuck = answer
            return None


def _answer(question: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(question())
    except BaseException as error:
        answer.set_exception(error)
