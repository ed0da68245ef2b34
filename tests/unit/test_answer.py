"""Phase 8 against a real worker whose engine is scripted: nothing goes on for an answer that nobody reads."""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from rbee.answer import answer
from rbee.events import Event, Token
from rbee.hive_client import WorkerClient
from rbee.local import LocalConnection
from rbee.render import OutputClosed
from rbee_remote.protocol import GenerateRequest, WorkerInfo
from rbee_remote.worker.testing import ScriptedEngine, loads
from tests.unit.worker.test_app import running


async def nothing_known() -> WorkerInfo | None:
    return None


async def test_a_reader_who_hangs_up_ends_the_generation() -> None:
    engine = ScriptedEngine(lambda _: b"x" * 4000, before_step=lambda _: time.sleep(0.005))
    request = GenerateRequest(uuid.uuid4().hex, prompt="abc")

    def hang_up(event: Event) -> None:
        if isinstance(event, Token):
            raise OutputClosed

    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as folder:
        async with (
            running(Path(folder), loads(engine), ctx=8192) as worker,
            LocalConnection(keeper_id="keeper") as connection,
        ):
            client = WorkerClient(connection, str(worker.socket), worker_id="a" * 16, keeper_id="keeper")
            with pytest.raises(OutputClosed):
                await answer(client, request, emit=hang_up, explain=nothing_known, save_to=Path(folder) / "answer.txt")
            async with asyncio.timeout(2):
                await worker.until(lambda status: status["state"] == "idle")
    assert engine.steps < 100
