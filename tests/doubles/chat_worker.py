"""A worker whose model answers the last question of a chat: `python chat_worker.py SOCKET`. And who talks with it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rbee.base.errors import RbeeError
from rbee.base.events import Event, Token
from rbee.base.settings import Settings
from rbee.chat.conversation import Turn
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.registry import Registry, WorkerRow
from rbee_remote.protocol import WorkerConfig, WorkerInfo, WorkerOptions, WorkerState
from tests.doubles.engine import INFO, ScriptedEngine, loads
from tests.patience import PATIENCE_S

MODEL = "smollm2:135m"
WORKER_ID = "c" * 16
SECRET = "s" * 32
#: Tokens, which are bytes, of the context.
CTX = 4096
TEMPLATE = "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
#: Of a step of a long answer, so that one is never over before a busy machine comes to stop it; and of any other's.
_LONG_PACE_S, _PACE_S = 0.01, 0.0005


class Model:
    """The last question said back; one that begins with "long" gets an answer that takes half a minute."""

    def __init__(self) -> None:
        self._pace_s = _PACE_S

    def answer(self, prompt: str) -> bytes:
        question = re.findall(r"\[user\]((?:(?!\[(?:user|assistant|system)\]).)*)\n", prompt, re.DOTALL)[-1]
        is_long = question.startswith("long")
        self._pace_s = _LONG_PACE_S if is_long else _PACE_S
        if is_long:
            return "".join(f"line {number}\n\n" for number in range(400)).encode()
        return f"you said: {question}".encode()

    def step(self, _: int) -> None:
        time.sleep(self._pace_s)


def main(socket: str) -> int:
    from rbee_remote.worker.main import serve

    info, model = replace(INFO, chat_template=TEMPLATE), Model()
    engine = ScriptedEngine(model.answer, before_step=model.step, info=info)
    config = WorkerConfig(
        id=WORKER_ID, model=MODEL, path="/none", socket=socket, options=WorkerOptions(), ctx=CTX, keep_alive_s=-1.0,
        slots=2, secret=SECRET,
    )  # fmt: skip
    return asyncio.run(serve(config, loads(engine)))


@contextmanager
def running_worker() -> Iterator[Path]:
    """The socket of one."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as folder:
        socket = Path(folder, "w.sock")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        worker = subprocess.Popen([sys.executable, __file__, str(socket)], env=env)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not socket.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield socket
        finally:
            worker.terminate()
            worker.wait()


def know_worker(registry: Path, node: str, socket: Path) -> None:
    """Have a keeper know the worker as one that it has just used."""
    info = WorkerInfo(
        id=WORKER_ID, model=MODEL, state=WorkerState.IDLE, backend="cpu", device="cpu", socket=str(socket), pid=1,
        start_ticks=1, boot_id="b", ctx=CTX, slots=2, slots_free=2, keep_alive_s=-1.0, created_at=time.time(),
        options=WorkerOptions(), secret=SECRET,
    )  # fmt: skip
    with Registry.open(registry) as opened:
        opened.upsert_worker(node, info)


def context_of(home: Path, *nodes: Node) -> Context:
    """A keeper with these nodes."""
    settings = Settings(home)
    return Context(
        settings=settings,
        inventory=Inventory({node.name: node for node in nodes}),
        open_registry=lambda: _Believing.open(settings.registry_path),
        keeper_id="0123456789abcdef",
    )


class _Believing(Registry):
    """Believes in a worker for as long as a busy machine needs for a test; it would ask a hive, and there is none."""

    def fresh_rows(self, max_age_s: float = 0.0) -> list[WorkerRow]:
        del max_age_s
        return self.rows()


class Screen:
    """A `View` that keeps what it was shown. on_token: called with what came of the answer so far."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.notices: list[str] = []
        self.errors: list[RbeeError] = []
        self.rows: list[tuple[str, ...]] = []
        self.copied = self.edits = ""
        self.is_folded = False
        self.on_token: Callable[[str], object] = lambda _: None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token):
            self.answers[-1] += event.text
            self.on_token(self.answers[-1])

    def begin(self) -> None:
        self.answers.append("")

    def end(self) -> None:
        """Nothing moves."""

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def error(self, error: RbeeError) -> None:
        self.errors.append(error)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        del header
        self.rows = [tuple(row) for row in rows]

    def turn(self, turn: Turn) -> None:
        self.notices.append(f"{turn.typed} -> {turn.answer}")

    def fold(self, *, is_folded: bool) -> None:
        self.is_folded = is_folded

    def text(self, text: str) -> None:
        self.notices.append(text)

    def copy(self, text: str) -> str:
        self.copied = text
        return "here"

    async def edit(self, text: str) -> str:
        return self.edits or text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
