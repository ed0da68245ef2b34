"""A chat with a worker behind sshd: the connection breaks in the middle of an answer, and the next turn is answered."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError
from rbee.chat.asked import Asked
from rbee.chat.chat import Chat
from rbee.chat.interfaces import Session
from rbee.infer.answer import Endpoint
from rbee.infer.stream import Patience
from tests.doubles import chat_worker
from tests.doubles.chat_worker import Screen
from tests.patience import PATIENCE_S
from tests.proxy import ChaosProxy
from tests.ssh.servers import SSHD, openssh_server

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's server is not installed")

#: Nobody listens there: the port of a server that is gone.
NOWHERE = ("127.0.0.1", 1)


@pytest.fixture
def worker() -> Iterator[Path]:
    with chat_worker.running_worker() as socket:
        yield socket


@pytest.mark.parametrize("is_fixed", [True, False])
async def test_a_lost_connection_does_not_end_the_chat(
    is_fixed: bool,
    worker: Path,
    tmp_path: Path,
    user_key: asyncssh.SSHKey,
    identity: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --node the same one is asked again, and without it the other, which has the same worker."""
    patience = Patience(silence_s=PATIENCE_S, outage_s=0.5, pause_s=0.02, longest_pause_s=0.05)
    monkeypatch.setattr("rbee.infer.infer.Endpoint", functools.partial(Endpoint, patience=patience))
    screen = Screen()
    async with (
        openssh_server(tmp_path, user_key) as server,
        ChaosProxy(("127.0.0.1", server.port)) as proxy,
    ):
        gpu1 = server.node(identity, port=proxy.port)
        gpu2 = replace(gpu1, name="gpu2", port=server.port)
        context = chat_worker.context_of(tmp_path / "keeper", gpu1, gpu2)
        context.settings.home.mkdir(mode=0o700)
        for node in ("gpu1", "gpu2"):
            chat_worker.know_worker(context.settings.registry_path, node, worker)

        def lose(came: str) -> None:
            if "line 3" in came:
                screen.on_token = lambda _: None
                proxy.lead_to(NOWHERE)
                proxy.strike("cut")

        async with Chat(context, screen, None, Session(asked=Asked(node="gpu1" if is_fixed else None))) as chat:
            chat.prepare()
            await chat.take("hi")
            assert chat.asking.place is not None
            assert chat.asking.place.node == "gpu1"
            opened = proxy.connections
            await chat.take("and now?")
            assert proxy.connections == opened == 1  # it is held

            screen.on_token = lose
            await chat.take("long")
            assert isinstance(chat.failure, ConnectError)
            partial = chat.conversation.turns[-1].answer
            assert partial.startswith("line 0\n\nline 1")
            assert "line 399" not in partial
            assert screen.notices[-1] == "what came of the answer is kept; /retry asks again"
            assert list(context.settings.log.glob("answer-*")) == []  # by the chat, and with --no-history nowhere

            if is_fixed:
                await chat.take("are you there?")
                assert isinstance(chat.failure, ConnectError)
                proxy.lead_to(("127.0.0.1", server.port))
            await chat.take("/retry" if is_fixed else "are you there?")
            assert chat.failure is None
            assert screen.answers[-1] == "you said: are you there?"
            assert chat.asking.place.node == ("gpu1" if is_fixed else "gpu2")
            assert chat.conversation.turns[-2].answer == partial
