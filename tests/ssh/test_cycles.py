"""What some cycles of connect, infer and drop leave open on either side: nothing. `benchmarks/cycles.py` has 1,000."""

from __future__ import annotations

import random
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.proxy import Fault
from tests.ssh.servers import SSHD
from tests.testbed.cycles import Cycles
from tests.testbed.loopback import loopback

pytestmark = [pytest.mark.model, pytest.mark.skipif(SSHD is None, reason="there is no sshd")]


async def test_cycles_leave_nothing_open(model_path: Path) -> None:
    chance = random.Random(2)
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as folder:  # short, for sockets
        async with loopback(Path(folder), lambda: Fault("cut", after_bytes=chance.randrange(500, 6000))) as node:
            cycles = Cycles(node, model_path)
            await cycles.warm_up()
            before = asdict(await cycles.quiet_sample(0))
            await cycles.run(0, 16)
            for way in ("process Ctrl-C", "process killed"):
                await cycles.one(way)
            after = asdict(await cycles.quiet_sample(18))
    assert cycles.broken == []
    grown = {name: (before[name], after[name]) for name in after if after[name] > before[name]}
    memory = {name: grown.pop(name) for name in ("node_private_mb", "keeper_private_mb") if name in grown}
    assert set(grown) <= {"cycles"}, grown
    assert all(now - then < 30 for then, now in memory.values()), memory
