"""An event loop whose clock jumps to the next timer: what waits for minutes takes none, and every run is the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumps(selectors.SelectSelector):
    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits, and for nothing that is to come")
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now

    def block(self, seconds: float) -> None:
        """As something does that computes for so long and lets nothing else run."""
        self._jumps.now += seconds


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in virtual time. Fails where a task is left over, or one ended with an error that nobody saw."""
    unseen: list[dict[str, Any]] = []

    async def checked() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        result = await main
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left over"
        return result

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        result = runner.run(checked())
    assert not unseen
    return result
