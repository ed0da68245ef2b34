"""This machine as a node: scripts, files and streams without SSH."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Event
from rbee.inventory import Node
from rbee.node.session import open_connection
from rbee.transport.connection import Connection
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S

CONTENT = os.urandom(2**21 + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    events: list[Event] = []
    async with open_connection(Node("local"), {}, emit=events.append, keeper_id="k1") as opened:
        yield opened
    assert events == []


async def test_a_script_has_an_answer_a_status_and_stderr(connection: Connection) -> None:
    done = await connection.run("printf 'a b'; echo why >&2; exit 5")
    assert (done.stdout, done.stderr, done.status, done.noise) == (b"a b", "why\n", 5, b"")


async def test_a_script_does_not_run_in_the_users_current_folder(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (await connection.run("pwd")).stdout == b"/\n"


async def test_a_script_that_does_not_end_is_ended_with_its_children(connection: Connection, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with asyncio.timeout(PATIENCE_S):
        while not (pid_file.exists() and pid_file.read_text()):  # a busy machine does not come so far in a second
            with pytest.raises(ConnectError) as caught:
                await connection.run(f"sleep 600 & echo $! > {pid_file}; wait", timeout=1)
            assert caught.value.code is ErrorCode.CONNECTION_TIMEOUT
    pid = int(pid_file.read_text())
    async with asyncio.timeout(PATIENCE_S):
        while _runs(pid):  # a signal may be on its way
            await asyncio.sleep(0.02)


async def test_a_detached_child_survives_its_script(connection: Connection) -> None:
    done = await connection.run("setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!; sleep 1")
    pid = int(done.stdout)
    assert _runs(pid)
    os.kill(pid, 9)


async def test_lines_come_as_they_are_printed(connection: Connection, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with connection.stream_script(f"echo one; while [ ! -e {go} ]; do sleep 0.02; done; echo two") as lines:
        assert await anext(lines) == b"one"
        go.touch()
        assert [line async for line in lines] == [b"two"]


async def test_a_file_is_copied_whole(connection: Connection, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "folder" / "file"
    source.write_bytes(CONTENT)
    seen: list[tuple[int, int]] = []
    await connection.put(source, str(target), sha256=SHA256, mode=0o600, on_bytes=lambda *both: seen.append(both))
    assert target.read_bytes() == CONTENT
    assert target.stat().st_mode & 0o777 == 0o600
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(target.parent.iterdir()) == [target]


async def test_a_wrong_file_leaves_what_was_there(connection: Connection, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(NodeError, match="another SHA-256"):
        await connection.put(CONTENT, str(target), sha256="0" * 64)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


async def test_a_target_that_cannot_be_written_says_why(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="cannot be written") as caught:
        await connection.put(CONTENT, str(tmp_path / "file" / "below"), sha256=SHA256)
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED


async def test_a_stream_reaches_a_socket_and_says_when_nobody_is_there(connection: Connection, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(100)).upper())
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    stream = await connection.open_stream(str(tmp_path / "s"))
    await stream.write(b"hello")
    assert await stream.read(100) == b"HELLO"
    assert await stream.read(100) == b""
    await stream.aclose()
    server.close()
    await server.wait_closed()
    for path in ("s", "never"):
        with pytest.raises(NodeError) as caught:
            await connection.open_stream(str(tmp_path / path))
        assert caught.value.code is ErrorCode.WORKER_GONE
    with pytest.raises(NodeError) as caught:
        await connection.open_stream(f"/tmp/{'x' * 120}")
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED


async def test_a_peer_that_ends_without_reading_has_hung_up(connection: Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen(1)
        stream = await connection.open_stream(f"{folder}/s")
        accepted, _ = listener.accept()
        await stream.write(b"GET / HTTP/1.1")
        accepted.close()
        assert await stream.read(100) == b""
        await stream.aclose()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def test_a_peer_that_hangs_up_while_it_is_written_to_has_hung_up(connection: Connection) -> None:
    """As a hive does that ends in this moment: no connection is lost, and who reads is told."""
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen(1)
        stream = await connection.open_stream(f"{folder}/s")
        accepted, _ = listener.accept()
        accepted.close()
        for _ in range(3):
            await stream.write(b"x" * 2**20)
        assert await stream.read(100) == b""
        await stream.aclose()


async def test_a_full_queue_is_waited_for(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/s"
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            opening = asyncio.create_task(connection.open_stream(path))
            await asyncio.sleep(0.1)
            assert not opening.done()
            listener.accept()[0].close()
            await (await asyncio.wait_for(opening, PATIENCE_S)).aclose()
            monkeypatch.setattr("rbee.transport.local.LOCAL_QUEUE_S", 0.1)
            with pytest.raises(ConnectError, match="takes no connections"):
                await connection.open_stream(path)
