"""Waiting for a change: told at once, told of one that was missed, told that there was none."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from rbee_remote.system.changes import Changes
from tests.patience import PATIENCE_S


async def test_everybody_who_waits_is_woken() -> None:
    changes = Changes()
    waiting = [asyncio.create_task(changes.wait(PATIENCE_S)) for _ in range(3)]
    waiting.append(asyncio.create_task(changes.wait()))
    await asyncio.sleep(0)
    changes.notify()
    assert await asyncio.gather(*waiting) == [True] * 4


async def test_without_a_change_the_wait_ends_in_time() -> None:
    assert not await Changes().wait(0.01)


async def test_who_has_missed_a_change_does_not_wait_for_the_next() -> None:
    changes = Changes()
    seen = changes.count
    changes.notify()
    with anyio.fail_after(PATIENCE_S):
        assert await changes.wait(seen=seen)
    assert not await changes.wait(0.01, seen=changes.count)


async def test_who_gives_up_is_forgotten() -> None:
    changes = Changes()
    with anyio.move_on_after(0.01) as scope:
        await changes.wait()
    assert scope.cancelled_caught
    assert changes._waiting == []
    changes.notify()


@pytest.mark.parametrize("times", [1, 5])
async def test_changes_are_counted(times: int) -> None:
    changes = Changes()
    for _ in range(times):
        changes.notify()
    assert changes.count == times
