"""A keeper that follows a worker and a hive: real ones, over this machine's own connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rbee.node.hive_client import HiveClient, WorkerClient
from rbee.node.socket_http import SilenceError
from rbee.transport.connection import Stream
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import WorkerState
from rbee_remote.protocol.prompt_digest import prompt_digests
from tests.doubles.connection import FakeConnection
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.conftest import folder as folder
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.service.test_news import chat, short

SECRET = "5ec2e75f" * 4


async def test_a_worker_is_followed_on_its_socket_for_keepers_too(folder: Path) -> None:
    settings: dict[str, Any] = {"ctx": 4096, "slots": 2, "keep_alive_s": 300.0, "secret": SECRET}
    here = LocalConnection(keeper_id="k")
    async with running(folder, loads(ScriptedEngine(short)), **settings) as worker:
        body = chat("ab")
        for secret in ("", SECRET):
            client = WorkerClient(here, str(worker.socket), worker_id="a" * 16, keeper_id="k", secret=secret)
            async with asyncio.timeout(PATIENCE_S), client.follow() as followed:
                while (told := await anext(followed)).status.state is not WorkerState.IDLE:
                    pass
                if not secret:
                    assert (await worker.client.post("/v1/chat/completions", json=body)).status_code == 200
                while not any(memory.digests == prompt_digests(body) for memory in told.slots):
                    told = await anext(followed)
            assert "k" not in {lease.keeper for lease in told.status.leases}


@pytest.mark.parametrize("whom", ["hive", "worker"])
async def test_one_that_falls_silent_is_given_up(whom: str) -> None:
    connection = FakeConnection()

    async def serve(stream: Stream) -> None:
        await stream.read(2**16)
        await stream.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\n: waiting\n\n\r\n")
        await asyncio.Event().wait()

    connection.listen("/s", serve)
    hive = HiveClient(connection, "/s", keeper_id="k")
    worker = WorkerClient(connection, "/s", worker_id="a" * 16, keeper_id="k")
    async with connection, asyncio.timeout(PATIENCE_S):
        with pytest.raises(SilenceError):
            async with (hive if whom == "hive" else worker).follow(silence_s=0.05) as followed:
                await anext(followed)
