"""Chats of a whole worker whose template is hostile: nobody waits for it but who asked for it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

from tests.doubles.engine import INFO, ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import last, request, running, text

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATE = (
    "{% if messages[0].content == 'slow' %}" + ENDLESS + "{% endif %}{% if messages[0].content == 'large' %}"
    "{{ 'x' * 10**11 }}{% endif %}{% for message in messages %}{{ message.content }}{% endfor %}"
)


def echo(prompt: str) -> bytes:
    return prompt.encode()


def engine(**values: Any) -> ScriptedEngine:
    return ScriptedEngine(echo, info=dataclasses.replace(INFO, chat_template=TEMPLATE), **values)


def chat(content: str) -> dict[str, Any]:
    return {**request(""), "prompt": None, "messages": [{"role": "user", "content": content}]}


async def test_while_a_template_computes_everybody_else_is_served(folder: Path) -> None:
    async with running(folder, loads(engine(before_step=lambda _: time.sleep(0.01))), slots=4) as worker:
        slow = [
            asyncio.create_task(worker.client.post("/v1/inference", json=chat("slow"), timeout=120)) for _ in range(2)
        ]
        raw = chats = 0
        async with worker.stream("x" * 50) as stream:
            async for _ in stream:
                if not all(task.done() for task in slow):
                    raw += 1
        while not all(task.done() for task in slow):
            assert text(await worker.generate("raw")) == "raw"
            answer = await worker.client.post("/v1/inference", json=chat("quick"), timeout=120)
            assert '"text": "q"' in answer.text
            chats += 1
        assert raw > 5
        assert chats > 2
        for task in slow:
            error = task.result().json()["error"]
            assert (task.result().status_code, error["code"]) == (422, "MODEL_INVALID")
            assert error["details"]["bound"] == "time"
            assert not error.get("hint")


async def test_a_chat_whose_template_computes_can_be_canceled(folder: Path) -> None:
    async with running(folder, loads(engine())) as worker:
        body = chat("slow")
        asking = asyncio.create_task(worker.client.post("/v1/inference", json=body, timeout=120))
        async with asyncio.timeout(PATIENCE_S):
            while (await worker.client.delete(f"/v1/requests/{body['request_id']}")).status_code != 202:
                await asyncio.sleep(0.01)
        events = await worker.client.get(f"/v1/requests/{body['request_id']}/events")
        assert '"finish_reason": "canceled"' in events.text
        assert text(await worker.generate("raw")) == "raw"
        await asking


async def test_requests_that_came_before_the_model_wait_for_their_own_prompts_alone(folder: Path) -> None:
    loaded = threading.Event()
    async with running(folder, loads(engine(), lambda: loaded.wait(0.01)), slots=2) as worker:
        bodies = [chat("slow"), chat("large"), chat("quick"), request("raw")]
        asking = [asyncio.create_task(worker.client.post("/v1/inference", json=body, timeout=120)) for body in bodies]
        await worker.until(lambda status: status["slots_free"] == 0 and status["queued"] == 2)
        loaded.set()
        slow, large, quick, raw = asking
        assert '"text": "q"' in (await quick).text
        assert '"text": "r"' in (await raw).text
        assert not slow.done()
        assert "MODEL_INVALID" in (await large).text
        assert '"bound": "time"' in (await slow).text
        assert (await worker.health())["slots_free"] == 2


async def test_a_worker_ends_while_a_template_computes(folder: Path) -> None:
    async with running(folder, loads(engine())) as worker:
        asking = asyncio.create_task(worker.client.post("/v1/inference", json=chat("slow"), timeout=120))
        await asyncio.sleep(0.5)
        await worker.client.post("/v1/admin/shutdown", json={"drain": False})
        assert await asyncio.wait_for(worker.task, PATIENCE_S) == 0
        assert last([(1, "error", (await asking).json())])["error"]["code"] in {"WORKER_GONE", "MODEL_INVALID"}
