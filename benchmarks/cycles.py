"""RBEE_CYCLES (1,000) times connect, infer, drop against a real sshd and a real worker: what stays open must not grow.

Most cycles are `rbee.infer.infer` in this process, so that its own descriptors, tasks and memory show; every twentieth
is a process. They end by themselves, by Ctrl-C, by SIGKILL, or have their connection cut and go on over another one.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Comparison
from tests.proxy import Fault
from tests.testbed import assets
from tests.testbed.cycles import FIGURES, Cycles, Sample
from tests.testbed.loopback import loopback

CYCLES = int(os.environ.get("RBEE_CYCLES") or 1000)
SAMPLES = 40
#: Bytes from the server after which a connection is cut: in the handshake, in the answer of two tokens, or not at all.
CUTS = (500, 6000)
#: What memory may grow by from the first half to the second: allocators do not give back all that they took.
MEMORY_GOAL_MB = 5.0


def measure() -> list[Comparison]:
    return asyncio.run(_measure())


async def _measure() -> list[Comparison]:
    with tempfile.TemporaryDirectory(prefix="rbee-bench-", dir="/tmp") as folder:
        chance = random.Random(1)
        async with loopback(Path(folder), lambda: Fault("cut", after_bytes=chance.randrange(*CUTS))) as node:
            cycles = Cycles(node, assets.model())
            await cycles.warm_up()
            samples, began = [await cycles.quiet_sample(0)], time.monotonic()
            for sample in range(SAMPLES):
                first, last = (CYCLES * edge // SAMPLES for edge in (sample, sample + 1))
                await cycles.run(first, last)
                samples.append(await cycles.quiet_sample(last))
                print(f"{time.monotonic() - began:7.0f} s  {samples[-1]}", flush=True)
    print(
        f"{dict(sorted(cycles.ended.items()))}, connections made anew in {cycles.mended}",
        *cycles.broken,
        sep="\n",
        flush=True,
    )
    return [
        Comparison("cycles", sum(cycles.ended.values()), goal=10**9, least=CYCLES, unit=""),
        Comparison("connections lost and made anew", cycles.mended, goal=10**9, least=1, unit=""),
        Comparison("ended otherwise", len(cycles.broken), goal=0, unit=""),
        *(_growth(figure, samples) for figure in FIGURES),
    ]


def _growth(figure: str, samples: Sequence[Sample]) -> Comparison:
    """From the highest of the first half to the highest of the second."""
    values = tuple(float(getattr(sample, figure)) for sample in samples)
    half = len(values) // 2
    growth = round(max(values[half:]) - max(values[:half]), 1)
    unit, goal = ("MB", MEMORY_GOAL_MB) if figure.endswith("_mb") else ("", 0.0)
    return Comparison(figure.replace("_", " "), growth, goal, unit=unit, ours=values, samples_in=unit, least=-(10.0**6))
