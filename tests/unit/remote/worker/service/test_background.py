"""Requests of the background at a whole worker: another one goes first, and they are the same answers in the end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx

from rbee_remote.protocol import HEADER_BACKGROUND
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Worker, running

BACKGROUND = {HEADER_BACKGROUND: "1"}
LONG, CTX = 400, 1000


def answer(prompt: str) -> bytes:
    return prompt.encode() * (LONG if prompt == "b" else 3)


class Halts:
    """Steps of an engine that wait until the test has got as far: at the first the background is at work, at the second
    it has its slots again."""

    def __init__(self) -> None:
        self.first, self.second = threading.Event(), threading.Event()
        self._at = {20: self.first, 150: self.second}

    def __call__(self, step: int) -> None:
        if halt := self._at.get(step):
            assert halt.wait(PATIENCE_S)


async def ask(worker: Worker, prompt: str, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": prompt}], **more.pop("fields", {})}
    return await worker.client.post("/v1/chat/completions", json=body, timeout=PATIENCE_S, **more)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


async def test_another_request_takes_a_slot_of_the_background_which_goes_on_then(folder: Path) -> None:
    halts = Halts()
    engine = ScriptedEngine(answer, before_step=halts)
    async with running(folder, loads(engine), slots=1, queue=0, ctx=CTX) as worker:
        batch = asyncio.create_task(ask(worker, "b", headers=BACKGROUND))
        await worker.until(lambda status: status["background"] == 1 and status["slots_free"] == 0)
        person = asyncio.create_task(ask(worker, "person"))  # a queue without places refuses nobody for it
        await worker.until(lambda status: status["queued"] == 1)
        halts.first.set()
        assert text(await person) == "person" * 3
        assert not batch.done()
        halts.second.set()
        assert text(await batch) == "b" * LONG
        await worker.until(lambda status: status["background"] == 0 and status["state"] == "idle")


async def test_a_background_request_that_lost_its_slot_can_be_left(folder: Path) -> None:
    halts = Halts()
    engine = ScriptedEngine(answer, before_step=halts)
    async with running(folder, loads(engine), slots=1, queue=4, ctx=CTX) as worker:
        batch = asyncio.create_task(ask(worker, "b", headers=BACKGROUND))
        await worker.until(lambda status: status["slots_free"] == 0)
        person = asyncio.create_task(ask(worker, "b"))
        await worker.until(lambda status: status["queued"] == 1)
        halts.first.set()
        batch.cancel()
        halts.second.set()
        await worker.until(lambda status: status["background"] == 0)
        assert text(await person) == "b" * LONG
        assert text(await ask(worker, "x")) == "xxx"


async def test_of_many_the_others_are_first_and_all_are_answered(folder: Path) -> None:
    order: list[str] = []
    halts = Halts()
    engine = ScriptedEngine(answer, before_step=halts)

    async def one(prompt: str, **more: Any) -> None:
        assert text(await ask(worker, prompt, **more)) == answer(prompt).decode()
        order.append(prompt)

    async with running(folder, loads(engine), slots=2, queue=16, ctx=CTX) as worker:
        batch = [asyncio.create_task(one("b", headers=BACKGROUND)) for _ in range(4)]
        await worker.until(lambda status: status["background"] == 4)
        people = [asyncio.create_task(one(f"p{number}")) for number in range(6)]
        await worker.until(lambda status: status["queued"] == 8)
        halts.first.set()
        await asyncio.gather(*people)
        halts.second.set()
        await asyncio.gather(*batch)
    assert "b" not in order[:6]
    assert order[6:] == ["b"] * 4


class Reads(ScriptedEngine):
    """Makes the prompt "b" when it is told to."""

    def __init__(self) -> None:
        super().__init__(answer)
        self.asked, self.may = threading.Event(), threading.Event()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if text == "b":
            self.asked.set()
            assert self.may.wait(PATIENCE_S)
        return super().tokenize(text, add_special=add_special, parse_special=parse_special)


async def test_prompts_of_the_background_that_are_being_made_take_nobodys_place(folder: Path) -> None:
    engine = Reads()
    async with running(folder, loads(engine), slots=1, queue=0, ctx=CTX) as worker:
        body = {"prompt": "b", "max_tokens": 3}
        batch = asyncio.create_task(worker.client.post("/v1/completions", json=body, headers=BACKGROUND))
        assert await asyncio.to_thread(engine.asked.wait, PATIENCE_S)
        another = await worker.client.post("/v1/completions", json=body | {"prompt": "c"}, headers=BACKGROUND)
        person = await worker.client.post("/v1/completions", json=body | {"prompt": "person"})
        engine.may.set()
        assert (another.status_code, person.status_code, (await batch).status_code) == (503, 200, 200)
