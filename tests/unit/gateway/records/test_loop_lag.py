from __future__ import annotations

import asyncio
import gc

import pytest

from rbee.gateway.records import loop_lag
from tests.doubles import virtual_time


def test_a_loop_that_was_blocked_says_for_how_long() -> None:
    async def main() -> list[float]:
        found: list[float] = []
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualTimeLoop)
        async with loop_lag.watched(found.append):
            await asyncio.sleep(2.5 * loop_lag.EVERY_S)
            loop.block(3 * loop_lag.EVERY_S)
            await asyncio.sleep(loop_lag.EVERY_S)
        return found

    late = 2.5 * loop_lag.EVERY_S  # of the 3, the half until it was due is not late
    assert virtual_time.run(main()) == pytest.approx([0, 0, late])


def test_what_is_there_once_the_nodes_were_heard_of_is_the_collectors_no_more() -> None:
    async def main() -> tuple[int, int]:
        heard_of = asyncio.Event()
        async with loop_lag.spared(heard_of.wait()):
            await asyncio.sleep(1)
            before = gc.get_freeze_count()
            heard_of.set()
            await asyncio.sleep(1)
            return before, gc.get_freeze_count()

    gc.unfreeze()
    try:
        before, after = virtual_time.run(main())
    finally:
        gc.unfreeze()
    assert before == 0
    assert after > 10_000
