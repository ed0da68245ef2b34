"""Two things at once, of which the first error ends both."""

from __future__ import annotations

import asyncio

import pytest

from rbee.base.errors import NodeError
from rbee.setup.base.stoppable import alongside
from rbee_remote.protocol import ErrorCode


class Forever:
    """ended: whether it was canceled, and has cleaned up."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = False

    async def wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended = True


async def fail(after: asyncio.Event) -> None:
    await after.wait()
    raise NodeError(ErrorCode.MODEL_NOT_FOUND, "there is no such model") from OSError("why")


async def test_both_are_done() -> None:
    said: list[str] = []

    async def main() -> str:
        said.append("main")
        return "ready"

    async def other() -> None:
        said.append("other")

    assert await alongside(main(), other()) == "ready"
    assert sorted(said) == ["main", "other"]


@pytest.mark.parametrize("main_fails", [True, False])
async def test_the_first_error_ends_the_other_and_is_raised_as_it_is(main_fails: bool) -> None:
    forever = Forever()
    failing = fail(forever.begun)
    with pytest.raises(NodeError, match="there is no such model") as caught:
        await (alongside(failing, forever.wait()) if main_fails else alongside(forever.wait(), failing))
    assert forever.ended
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_cancellation_ends_both() -> None:
    one, two = Forever(), Forever()
    task = asyncio.create_task(alongside(one.wait(), two.wait()))
    await asyncio.gather(one.begun.wait(), two.begun.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one.ended
    assert two.ended
