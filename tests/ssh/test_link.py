"""Commands over the link, with real processes: the same as directly, and whatever goes wrong with it, directly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.linked import Keeper, answer, keeper_with_worker
from tests.ssh.servers import SSHD

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's server is not installed")


@pytest.fixture
async def keeper(user_key: asyncssh.SSHKey, identity: Path) -> AsyncIterator[Keeper]:
    async with keeper_with_worker(user_key, identity) as running:
        yield running


async def test_a_command_leaves_a_holder_that_serves_the_next(keeper: Keeper) -> None:
    await keeper.hold()
    before = keeper.status()
    done = await keeper("infer", "--raw", "--node", "gpu1", "2")
    assert (done.status, done.stdout) == (0, answer("2")), done.stderr
    assert before == 1
