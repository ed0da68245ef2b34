"""A fleet in place of a gateway's: answers come as a script says. As a program it runs whole batches, each in a process
of its own, for a test to kill: for each line `INPUT OUTPUT ORDER` of its input it says the process, and when that is
over, its status."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import NodeError
from rbee.base.events import Event
from rbee.base.settings import Settings
from rbee.batch.asker import Answer
from rbee.batch.batch import batch
from rbee.batch.reading import Input
from rbee.batch.request import BatchRequest
from rbee.context import Context
from rbee.gateway.base.interfaces import Client, Ended
from rbee.gateway.base.views import NodeView, WorkerKey
from rbee.inventory import Inventory, Node
from rbee.registry import Registry
from rbee_remote.protocol import ErrorCode, TrackedUsage
from tests.unit.gateway.views import MODEL, node_view, worker_view

Script = Callable[[str], Awaitable[tuple[int, str]]]
TOKENS = TrackedUsage(prompt=6, completion=4, cached=0)


async def says_back(prompt: str) -> tuple[int, str]:
    await asyncio.sleep(random.random() * 0.004)
    return 200, f"re: {prompt}"


class ScriptedFleet:
    """script: for a prompt the status and the text, or the code of an error. prompts: those that came. nodes, known: as
    of an `Asker`."""

    def __init__(self, script: Script = says_back, *, slots: int = 8) -> None:
        self.script = script
        self.prompts: list[str] = []
        self.bodies: list[Mapping[str, Any]] = []
        self.nodes: tuple[NodeView, ...] = (node_view("a", [worker_view("a", slots=slots)]),)
        self.known: set[str] = {"", MODEL}
        self.most = self._running = 0

    @asynccontextmanager
    async def asker_for(self, *_: Any) -> AsyncIterator[ScriptedFleet]:
        yield self

    async def acquainted(self) -> None:
        """Nobody has to be waited for."""

    def models(self, name: str) -> tuple[str, ...]:
        if name not in self.known:
            raise NodeError(ErrorCode.MODEL_NOT_FOUND, f"there is no model {name!r}", hint="did you mean x?")
        return (MODEL,)

    async def ask(self, path: str, body: Mapping[str, Any], request_id: str) -> Answer:
        prompt = body["messages"][-1]["content"]
        self.prompts.append(prompt)
        self.bodies.append(body)
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            status, text = await self.script(prompt)
        finally:
            self._running -= 1
        worker = WorkerKey(self.nodes[0].name, "1" * 16)
        if status == 200:
            told: Any = {"choices": [{"message": {"content": text}}]}
            ended = Ended(request_id, Client(), "POST", path, 200, worker=worker, usage=TOKENS)
        else:
            told = {"error": {"message": text.lower(), "code": text}}
            ended = Ended(request_id, Client(), "POST", path, status, worker=worker, finish=text)
        return Answer(status, json.dumps(told).encode(), ended)


def context_in(home: Path, events: list[Event]) -> Context:
    return Context(
        Settings(home=home),
        Inventory({"a": Node("a", host="a.example")}),
        lambda: Registry.open(home / "workers.db"),
        "k" * 16,
        emit=events.append,
    )


def run(source: str, out: str, order: str) -> None:
    asked = BatchRequest(Input(Path(source)), Path(out), in_order=order == "input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rbee.batch.batch.asker_for", ScriptedFleet().asker_for)
        asyncio.run(batch(context_in(Path(out).parent, []), asked))


def main() -> None:
    """What a run imports is imported once."""
    for words in sys.stdin:
        process = os.fork()
        if not process:
            random.seed()
            run(*words.split())
            os._exit(0)
        _say(process)
        _say(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
