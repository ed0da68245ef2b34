"""A worker process whose model is a script, paced like a real one: `python scripted_worker.py SOCKET [SECRET]`."""

from __future__ import annotations

import asyncio
import sys
import time

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.main import serve
from tests.doubles.engine import ScriptedEngine, loads

WORKER_ID = "a" * 16
SLOTS = 8
#: Seconds of a step, each of which gives every slot a token.
PACE_S = 0.004


def answer(prompt: str) -> bytes:
    """About 120 bytes, a token each, some characters two of them; for "endless" as many as last a minute."""
    return "".join(f"{prompt}.{number} né " for number in range(1000 if prompt == "endless" else 14)).encode()


def main(socket: str, secret: str = "") -> int:
    engine = ScriptedEngine(answer, before_step=lambda _: time.sleep(PACE_S))
    config = WorkerConfig(
        id=WORKER_ID,
        model="scripted",
        path="/none",
        socket=socket,
        options=WorkerOptions(),
        ctx=20_000,
        keep_alive_s=-1.0,
        slots=SLOTS,
        secret=secret,
    )
    return asyncio.run(serve(config, loads(engine)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
