"""An answer is whole and told once, whatever the network between keeper and sshd does: cut, stalled, delayed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import httpx
import pytest

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError, RefusedError
from rbee.base.events import Emit, Event, Notice, Token
from rbee.infer.answer import Endpoint, answer
from rbee.infer.partial import Answer, PartialAnswer
from rbee.infer.stream import Patience
from rbee.infer.worker_status import HiveReport
from rbee.node.hive_client import WorkerClient
from rbee.node.session import open_connection
from rbee.transport.connection import Connection, SocketAccess
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import ErrorCode, GenerateRequest
from tests.patience import PATIENCE_S
from tests.proxy import ChaosProxy, Fault, Kind, random_fault
from tests.ssh import scripted_worker
from tests.ssh.peers import PIPE
from tests.ssh.servers import SSHD, Server, openssh_server

AT_ONCE = 16
#: Shorter than a user's: these answers have a token every few milliseconds, and sshd is near. A connection that stalls
#: costs silence_s, one that does so while it is opened attempt_s; a machine with other work to do needs some of both.
PATIENCE = Patience(silence_s=2.0, outage_s=PATIENCE_S, attempt_s=10.0, pause_s=0.02, longest_pause_s=0.2)
PROMPT = "7"
ANSWER = scripted_worker.answer(PROMPT)

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's server is not installed")


@dataclass(frozen=True)
class Peer:
    """A worker behind an sshd."""

    server: Server
    identity: Path
    socket: Path
    process: asyncio.subprocess.Process

    @asynccontextmanager
    async def through(self, proxy: ChaosProxy, emit: Emit) -> AsyncIterator[tuple[Endpoint, PartialAnswer]]:
        """The worker as a keeper sees it over the proxy, and what takes in its answer."""
        node = self.server.node(self.identity, port=proxy.port)

        def opener(access: SocketAccess, emit: Emit) -> AbstractAsyncContextManager[Connection]:
            return open_connection(node, {}, emit=emit, keeper_id="k1", access=access)

        access = SocketAccess(pipe_command=PIPE)
        async with ReconnectingConnection(node.name, opener, emit, access) as connection:
            client = WorkerClient(connection, str(self.socket), worker_id=scripted_worker.WORKER_ID, keeper_id="k1")
            save_to = self.socket.with_name(f"{uuid.uuid4().hex}.txt")
            yield Endpoint(client, connection, explain=nothing_known, patience=PATIENCE), PartialAnswer(save_to)

    async def until_idle(self) -> None:
        """No request runs or waits on the worker any more."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://worker") as client,
            asyncio.timeout(PATIENCE_S),
        ):
            while (await client.get("/v1/health")).json()["state"] != "idle":
                await asyncio.sleep(0.02)


async def nothing_known() -> HiveReport:
    """There is no hive beside the scripted worker."""
    return HiveReport(reached=False)


@asynccontextmanager
async def running_peer(
    folder: Path, user_key: asyncssh.SSHKey, identity: Path, *sshd_settings: str
) -> AsyncIterator[Peer]:
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as run_dir:
        socket = Path(run_dir, "w.sock")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        worker = await asyncio.create_subprocess_exec(
            sys.executable, scripted_worker.__file__, str(socket), env=environment
        )
        try:
            async with openssh_server(folder, user_key, "MaxStartups 200", "LogLevel QUIET", *sshd_settings) as server:
                async with asyncio.timeout(PATIENCE_S):
                    while not socket.exists():
                        await asyncio.sleep(0.02)
                yield Peer(server, identity, socket, worker)
        finally:
            if worker.returncode is None:
                worker.terminate()
            await worker.wait()


@pytest.fixture
async def peer(tmp_path: Path, user_key: asyncssh.SSHKey, identity: Path) -> AsyncIterator[Peer]:
    async with running_peer(tmp_path, user_key, identity) as running:
        yield running


class Reader:
    """What the user sees; `on_token` is called with the number of each token."""

    def __init__(self, on_token: Callable[[int], None] = lambda _: None) -> None:
        self.events: list[Event] = []
        self.on_notice: Callable[[str], object] = lambda _: None
        self._on_token = on_token

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Token):
            self._on_token(event.tokens)
        if isinstance(event, Notice):
            self.on_notice(event.text)

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.events if isinstance(event, Token)]

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]

    def has_all_of(self, expected: bytes, result: Answer) -> None:
        """Every token came once and in order."""
        assert [token.tokens for token in self.tokens] == list(range(1, len(expected) + 1))
        assert "".join(token.text for token in self.tokens) == result.text == expected.decode()
        assert result.usage.completion_tokens == len(expected)


def ask(prompt: str = PROMPT) -> GenerateRequest:
    return GenerateRequest(uuid.uuid4().hex, prompt=prompt)


def striking(proxy: ChaosProxy, kind: Kind, at_token: int) -> Callable[[int], None]:
    return lambda number: proxy.strike(kind) if number == at_token else None


# --- chance -------------------------------------------------------------------------------------------------------


async def one_run(peer: Peer, seed: int) -> int:
    """An answer over a network of that seed, which fails once in mid-answer or before, and then up to twice more; how
    often it was reconnected."""
    generator = random.Random(seed)
    first = replace(random_fault(generator, bytes_at_most=2, seconds_at_most=1.0), kind="none")
    more = [random_fault(generator, bytes_at_most=8000, seconds_at_most=0.8) for _ in range(generator.randrange(3))]
    faults = dict(enumerate([first, *more]))
    kind: Kind = generator.choice(("cut", "close", "stall", "half-open"))
    at_token = generator.choice((None, generator.randrange(1, 120)))
    after_s = generator.uniform(0.0, 0.6)

    async with ChaosProxy(("127.0.0.1", peer.server.port), lambda number: faults.get(number, Fault())) as proxy:
        reader = Reader(striking(proxy, kind, at_token) if at_token else lambda _: None)
        async with peer.through(proxy, reader) as (endpoint, partial), asyncio.timeout(PATIENCE_S):
            if at_token is None:
                asyncio.get_running_loop().call_later(after_s, proxy.strike, kind)
            result = await answer(endpoint, ask(str(seed)), partial, emit=reader)
        reader.has_all_of(scripted_worker.answer(str(seed)), result)
        assert not partial.path.exists()
        return proxy.connections - 1


async def runs(peer: Peer, seeds: range, at_once: int = AT_ONCE) -> list[int]:
    room = asyncio.Semaphore(at_once)

    async def run(seed: int) -> int:
        async with room:
            try:
                return await one_run(peer, seed)
            except BaseException as error:
                error.add_note(f"with seed {seed}")
                raise

    return await asyncio.gather(*map(run, seeds))


async def test_no_token_is_lost_and_none_told_twice(peer: Peer) -> None:
    reconnected = await runs(peer, range(200))
    assert sum(count > 0 for count in reconnected) > 150, "the network failed in most of the runs"
    await peer.until_idle()


async def test_nor_where_sshd_forbids_forwarding(tmp_path: Path, user_key: asyncssh.SSHKey, identity: Path) -> None:
    """There a stream is a Python process on the node, which takes longer to start than a channel."""
    async with running_peer(tmp_path, user_key, identity, "AllowStreamLocalForwarding no") as peer:
        reconnected = await runs(peer, range(1000, 1010), at_once=4)
        assert sum(count > 0 for count in reconnected) > 7
        await peer.until_idle()


# --- case by case -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut", "close", "stall", "half-open"])
async def test_the_user_is_told_once_of_each(peer: Peer, kind: Kind) -> None:
    async with ChaosProxy(("127.0.0.1", peer.server.port)) as proxy:
        reader = Reader(striking(proxy, kind, 40))
        async with peer.through(proxy, reader) as (endpoint, partial):
            reader.has_all_of(ANSWER, await answer(endpoint, ask(), partial, emit=reader))
    assert reader.notices == ["lost the connection to gpu1, reconnecting", "reconnected to gpu1"]


async def test_a_network_that_does_not_come_back_ends_the_answer_and_keeps_its_text(peer: Peer) -> None:
    async with ChaosProxy(
        ("127.0.0.1", peer.server.port), lambda number: Fault("cut", after_s=0.0) if number else Fault()
    ) as proxy:
        reader = Reader(striking(proxy, "cut", 40))
        async with peer.through(proxy, reader) as (endpoint, partial):
            hasty = replace(endpoint, patience=replace(PATIENCE, outage_s=1.0))
            with pytest.raises(ConnectError) as caught:
                await answer(hasty, ask(), partial, emit=reader)
        assert caught.value.code is ErrorCode.CONNECTION_LOST
        assert caught.value.details["saved"] == str(partial.path)
        assert partial.path.read_text() == "".join(token.text for token in reader.tokens)
        assert ANSWER.decode().startswith(partial.path.read_text())


async def test_a_deadline_ends_an_outage(peer: Peer) -> None:
    """As `infer` has it: the time is up for everything at once, and nothing waits beyond it."""
    async with ChaosProxy(
        ("127.0.0.1", peer.server.port), lambda number: Fault("stall", after_s=0.0) if number else Fault()
    ) as proxy:
        reader = Reader(striking(proxy, "stall", 40))
        async with peer.through(proxy, reader) as (endpoint, partial):
            deadline = Deadline.after(2.0)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(deadline.left()):
                    await answer(replace(endpoint, deadline=deadline), ask(), partial, emit=reader)
            assert time.monotonic() - began < 20.0, "it tried for half a minute"
    await peer.until_idle()


async def test_a_worker_that_died_meanwhile_is_not_waited_for(peer: Peer) -> None:
    async with ChaosProxy(("127.0.0.1", peer.server.port)) as proxy:

        def disaster(number: int) -> None:
            if number == 40:
                peer.process.send_signal(signal.SIGKILL)
                proxy.strike("cut")

        reader = Reader(disaster)
        async with peer.through(proxy, reader) as (endpoint, partial):
            with pytest.raises(NodeError) as caught:
                await answer(endpoint, ask(), partial, emit=reader)
    assert caught.value.code is ErrorCode.WORKER_CRASHED
    assert partial.path.read_text() == "".join(token.text for token in reader.tokens)


async def test_a_worker_that_hangs_is_told_from_a_lost_connection(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outage's time is up while a worker is waited for that was connected to, however long that took."""
    ahead, tries, resume = 0.0, 0, WorkerClient.resume

    def resumed(self: WorkerClient, *words: Any, **more: Any) -> Any:
        nonlocal ahead, tries
        tries += 1
        ahead = PATIENCE_S if tries == 3 else 0.0
        return resume(self, *words, **more)

    monkeypatch.setattr(WorkerClient, "resume", resumed)
    monkeypatch.setattr("rbee.infer.stream.time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))
    async with ChaosProxy(("127.0.0.1", peer.server.port)) as proxy:
        reader = Reader(lambda number: peer.process.send_signal(signal.SIGSTOP) if number == 40 else None)
        async with peer.through(proxy, reader) as (endpoint, partial):
            hasty = replace(endpoint, patience=replace(PATIENCE, silence_s=0.5))
            with pytest.raises(ConnectError) as caught:
                await answer(hasty, ask(), partial, emit=reader)
    peer.process.send_signal(signal.SIGCONT)
    assert caught.value.code is ErrorCode.CONNECTION_TIMEOUT
    assert "no answer to GET /v1/requests" in caught.value.message
    assert partial.path.exists()


async def test_ctrl_c_during_an_outage_reaches_the_worker(peer: Peer) -> None:
    lost = asyncio.Event()
    async with ChaosProxy(("127.0.0.1", peer.server.port)) as proxy:

        def fail(number: int) -> None:
            if number == 3:
                proxy.strike("stall")
                lost.set()

        reader = Reader(fail)
        async with peer.through(proxy, reader) as (endpoint, partial):
            answering = asyncio.create_task(answer(endpoint, ask("endless"), partial, emit=reader))
            await lost.wait()
            answering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answering
            assert proxy.connections == 2
        await peer.until_idle()


async def test_ctrl_c_while_there_is_no_connection_ends_soon_and_says_so(peer: Peer) -> None:
    down = asyncio.Event()
    async with ChaosProxy(
        ("127.0.0.1", peer.server.port), lambda number: Fault("stall", after_s=0.0) if number else Fault()
    ) as proxy:
        reader = Reader(striking(proxy, "cut", 3))
        reader.on_notice = lambda text: down.set() if text.startswith("lost") else None
        async with peer.through(proxy, reader) as (endpoint, partial):
            answering = asyncio.create_task(answer(endpoint, ask("endless"), partial, emit=reader))
            await down.wait()
            while proxy.connections < 2:
                await asyncio.sleep(0.02)
            answering.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await answering
            assert time.monotonic() - began < 9.0, "it waited for a connection, which takes ten seconds"
    assert reader.notices[1:] == [
        "canceling: asking gpu1 to stop",
        "gpu1 could not be asked to stop: its worker ends the answer within a minute",
    ]


async def test_a_changed_host_key_is_no_reason_to_go_on(peer: Peer, tmp_path: Path, user_key: asyncssh.SSHKey) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with openssh_server(other, user_key) as impostor, ChaosProxy(("127.0.0.1", peer.server.port)) as proxy:

        def take_over(number: int) -> None:
            if number == 40:
                proxy.target = ("127.0.0.1", impostor.port)
                proxy.strike("cut")

        reader = Reader(take_over)
        async with peer.through(proxy, reader) as (endpoint, partial):
            with pytest.raises(RefusedError) as caught:
                await answer(endpoint, ask(), partial, emit=reader)
    assert caught.value.code is ErrorCode.HOST_KEY_MISMATCH
    assert caught.value.details["saved"] == str(partial.path)


async def test_a_request_whose_beginning_was_lost_is_computed_once(peer: Peer) -> None:
    """Cut before the first byte of an answer came back: the worker has the request, and the keeper cannot know."""
    request = ask()
    async with ChaosProxy(("127.0.0.1", peer.server.port)) as proxy:
        reader = Reader()
        async with peer.through(proxy, reader) as (endpoint, partial):
            async with endpoint.worker.generate(request):
                proxy.strike("cut")
            reader.has_all_of(ANSWER, await answer(endpoint, request, partial, emit=reader))
    await peer.until_idle()
