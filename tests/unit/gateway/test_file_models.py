"""A `file:` model, which each node has of its own: an answer goes on where the same file is, and nowhere else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from rbee.base.errors import ConnectError
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.gateway.requests.app import make_app
from rbee.gateway.requests.model_list import ModelNames
from rbee.gateway.requests.parts import AppSettings, Parts
from rbee.gateway.routing.dispatcher import FleetDispatcher
from rbee_remote.protocol import ErrorCode
from tests.doubles.gateway import FakeGate, FakeRecorder, Heard, ask, chat, chat_script, plain, resuming
from tests.doubles.hive import Answers, model_info, worker_info
from tests.unit.gateway.fleet_bed import Bed, node_that

MODEL = "file:/srv/model.gguf"
STEPS = chat_script(["one ", "two ", "three ", "four "])


async def answer_from_two(bed: Bed, **files: str) -> Heard:
    """files: the SHA-256 of each node's. The node where the answer begins is lost in the middle of it."""
    begun: list[str] = []

    def answers_of(name: str) -> Answers:
        async def answers(path: str, body: bytes) -> AsyncIterator[bytes]:
            content = resuming(STEPS)(json.loads(body))
            begun.append(name)
            if len(begun) == 1:
                yield content[: len(content) // 2]
                bed.errors[name] = ConnectError(ErrorCode.CONNECTION_TIMEOUT, f"{name} cannot be reached")
                bed.connections[name].lose()
                await asyncio.get_running_loop().create_future()
            yield content

        return answers

    for name, sha256 in files.items():
        node = await bed.used(name)
        node.models = (replace(model_info(MODEL, sha256), owned=False),)
        node.answers = answers_of(name)
        await node.tell(replace(worker_info(), model=MODEL, sha256=sha256))
    async with NodeFleet(bed.context(*files)) as fleet, FleetDispatcher(fleet) as dispatcher:
        for name in files:
            await node_that(fleet, name, lambda view: bool(view.workers))
        names = ModelNames(lambda: fleet.inventory, fleet)
        settings = AppSettings(back_s=0.01, resume_s=0.1)
        app = make_app(Parts(fleet, dispatcher, FakeGate(), FakeRecorder(), names, settings))
        return await ask(app, chat(model=MODEL))


async def test_an_answer_goes_on_where_the_same_file_is(bed: Bed) -> None:
    heard = await answer_from_two(bed, gpu1="a" * 64, gpu2="a" * 64)
    assert (heard.body, heard.is_complete) == (plain(STEPS), True)


@pytest.mark.parametrize("other", ["b" * 64, ""], ids=["another file", "a file that has changed and was not read yet"])
async def test_an_answer_does_not_go_on_with_another_file(bed: Bed, other: str) -> None:
    heard = await answer_from_two(bed, gpu1="a" * 64, gpu2=other)
    assert not heard.is_complete
    assert b"the answer is not complete" in heard.body
