"""Who listens at a worker's path has to prove that it is the worker, before it is told anything."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.node.hive_client import WorkerClient
from rbee.node.socket_http import HungUpError, ImpostorError, SilenceError, SocketHttp
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import (
    ErrorCode,
    GenerateRequest,
    RemoteError,
    StopRequest,
    WorkerConfig,
    WorkerOptions,
    encode,
    greeting,
    keeper_socket,
)
from rbee_remote.serving import pipe
from rbee_remote.system import unix_http
from rbee_remote.worker.main import serve
from tests.doubles.engine import ScriptedEngine, loads
from tests.testbed.node import wait_until

SECRET = "5ec2e75f" * 4
ID = "a" * 16
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as path:
        yield Path(path)


@asynccontextmanager
async def saying(path: Path, *words: bytes, then_listen: bool = True) -> AsyncIterator[bytearray]:
    """Somebody who says that as soon as there is a connection; yields what he hears."""
    heard = bytearray()
    done = asyncio.Event()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for word in words:
                writer.write(word)
                await writer.drain()
                await asyncio.sleep(0.02)
            while then_listen and (data := await reader.read(65536)):
                heard.extend(data)
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_unix_server(serve_one, path)
    async with server:
        yield heard
        await done.wait()


def http(path: Path) -> SocketHttp:
    return SocketHttp(LocalConnection(keeper_id="k" * 16), str(path), {}, greeting=greeting(SECRET))


async def test_the_greeting_may_come_in_pieces(folder: Path) -> None:
    whole = greeting(SECRET)
    async with saying(folder / "s", whole[:5], whole[5:], ANSWER):
        assert await http(folder / "s").request("POST", "/", {"prompt": "secret"}) == {}


@pytest.mark.parametrize(
    ("words", "then_listen", "error"),
    [
        ((greeting("0" * 32),), True, ImpostorError),
        ((ANSWER,), True, ImpostorError),
        ((greeting(SECRET)[:-1],), False, ImpostorError),
        ((b"rbee ",), True, SilenceError),
        ((), True, SilenceError),
        ((), False, HungUpError),
    ],
)
async def test_who_does_not_know_the_secret_is_told_nothing(
    folder: Path, words: tuple[bytes, ...], then_listen: bool, error: type[Exception]
) -> None:
    async with saying(folder / "s", *words, then_listen=then_listen) as heard:
        timeout = 0.3 if error is SilenceError else 30.0
        with pytest.raises(error):
            await http(folder / "s").request("POST", "/", {"prompt": "secret"}, timeout=timeout)
        await asyncio.sleep(0.05)
        assert heard == b""


async def test_a_worker_says_its_secret_to_keepers_and_speaks_plain_http_to_all_others(folder: Path) -> None:
    path = folder / f"worker-{ID}.sock"
    options = WorkerOptions()
    config = WorkerConfig(ID, "m", "/none", str(path), options, ctx=512, keep_alive_s=-1.0, secret=SECRET)
    connection = LocalConnection(keeper_id="k" * 16)
    running = asyncio.create_task(serve(config, loads(ScriptedEngine(lambda _: b"yes"))))
    try:
        while not path.exists():
            await asyncio.sleep(0.01)
        assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
            f"worker-{ID}.sock": 0o600,
            f"worker-{ID}.keeper": 0o600,
        }

        def client(secret: str) -> WorkerClient:
            return WorkerClient(connection, str(path), worker_id=ID, keeper_id="k" * 16, secret=secret)

        assert (await client("").health()).state
        assert (await client(SECRET).health()).state
        with pytest.raises(ImpostorError) as caught:
            async with client("0" * 32).generate(GenerateRequest(request_id="r" * 32, prompt="secret")):
                pass
        assert caught.value.code is ErrorCode.WORKER_GONE  # so that `infer` asks the hive, after another probe
    finally:
        await SocketHttp(connection, str(path), {}).request("POST", "/v1/admin/shutdown", encode(StopRequest()))
        await running
    assert keeper_socket(str(path)).endswith(f"worker-{ID}.keeper")
    assert list(folder.iterdir()) == []


LISTEN = """
import os, socket, sys, time
os.setuid(12345)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
time.sleep(60)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whose the other end is")
async def test_on_one_machine_the_kernel_says_who_listens(folder: Path) -> None:
    path = folder / "s"
    folder.chmod(0o777)
    other = subprocess.Popen([sys.executable, "-I", "-c", LISTEN, str(path)])
    try:
        wait_until(path.exists, 20, lambda: "nobody listens")
        with pytest.raises(NodeError, match="another user's process listens"):
            await LocalConnection(keeper_id="k" * 16).open_stream(str(path))
        with pytest.raises(RemoteError, match="another user's process listens"):
            pipe.main([str(path)])
        with pytest.raises(ConnectionRefusedError, match="another user's process listens"):
            unix_http.request(path, "GET", "/v1/health")
    finally:
        other.kill()
        other.wait()
