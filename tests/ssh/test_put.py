"""Files arrive whole or not at all: continued after a break, checked, renamed into place."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.transport.connection import Connection
from rbee.transport.upload import PIECE, part_of
from rbee_remote.protocol import ErrorCode
from tests.ssh.conftest import Connect
from tests.ssh.servers import asyncssh_server

CONTENT = random.Random(7).randbytes(5 * PIECE + 12345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def _part(target: Path) -> Path:
    return Path(part_of(str(target), sha256=SHA256, keeper_id="k1"))


def _with_tool(folder: Path, name: str, does: str) -> dict[str, str]:
    """An environment in which the command `name` does something else."""
    (folder / name).write_text(f"#!/bin/sh\n{does}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


async def _put(connection: Connection, target: Path, source: Path | bytes = CONTENT) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    await connection.put(source, str(target), sha256=SHA256, mode=0o640, on_bytes=lambda *both: seen.append(both))
    return seen


def _arrived(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("shell", ["/bin/sh", "/usr/bin/fish", "/bin/tcsh"])
async def test_a_file_arrives_with_its_folders_mode_and_progress(
    shell: str, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    if not Path(shell).exists():
        pytest.skip(f"{shell} is not installed")
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    target = tmp_path / "a folder" / "it's" / "model.gguf"
    async with asyncssh_server([user_key], shell=[shell]) as server, connect(server.node(identity)) as connection:
        seen = await _put(connection, target, source)
    _arrived(target)
    assert seen == [(min((n + 1) * PIECE, len(CONTENT)), len(CONTENT)) for n in range(6)]
    assert target.parent.stat().st_mode & 0o777 == 0o700


async def test_an_empty_file_and_bytes_arrive_and_replace_what_was_there(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there" / "file"
    target.parent.mkdir()
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        for content in (b"", b"old", b"something longer"):
            await connection.put(content, str(target), sha256=hashlib.sha256(content).hexdigest())
            assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


async def test_an_interrupted_upload_is_continued(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there" / "file"
    async with asyncssh_server([user_key]) as server:
        async with connect(server.node(identity)) as connection:

            def cut_in_the_middle(done: int, _: int) -> None:
                if done > 3 * PIECE:
                    server.connections[-1].abort()

            with pytest.raises(ConnectError) as caught:
                await connection.put(CONTENT, str(target), sha256=SHA256, on_bytes=cut_in_the_middle)
            assert caught.value.code is ErrorCode.CONNECTION_LOST
        assert not target.exists()
        # Whatever had arrived: from here on it is three pieces and a bit.
        target.parent.mkdir(exist_ok=True)
        _part(target).write_bytes(CONTENT[: 3 * PIECE + 17])
        async with connect(server.node(identity)) as connection:
            seen = await _put(connection, target)
    _arrived(target)
    assert seen[0][0] == 4 * PIECE


@pytest.mark.parametrize("size", [2 * PIECE + 5, len(CONTENT), len(CONTENT) + 1])
async def test_a_corrupt_part_is_thrown_away(
    size: int, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there" / "file"
    target.parent.mkdir()
    _part(target).write_bytes(b"\1" * size)
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        seen = await _put(connection, target)
    _arrived(target)
    assert (PIECE, len(CONTENT)) in seen


async def test_content_that_is_not_what_was_named_is_refused_and_leaves_nothing(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there" / "file"
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError, match="another SHA-256") as caught:
            await connection.put(b"other", str(target), sha256=SHA256)
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert list(target.parent.iterdir()) == []


async def test_two_uploads_of_one_file_at_once_leave_one_whole_file(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there" / "file"
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        await asyncio.gather(*(_put(connection, target) for _ in range(4)))
    _arrived(target)


async def test_a_target_that_cannot_be_written_says_why(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError) as caught:
            await _put(connection, tmp_path / "file" / "below")
        assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
        assert "mkdir" in caught.value.details["said"]
        with pytest.raises(NodeError, match="cannot be written"):
            await _put(connection, tmp_path)


async def test_a_full_disk_is_named_before_anything_is_sent(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    # A df that knows of no room stands in for a disk that is full.
    env = _with_tool(tmp_path, "df", "echo header; echo '/dev/x 100 99 1 99% /'")
    seen: list[int] = []
    async with asyncssh_server([user_key], env=env) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError) as caught:
            await connection.put(
                CONTENT, str(tmp_path / "there" / "file"), sha256=SHA256, on_bytes=lambda done, _: seen.append(done)
            )
    assert caught.value.code is ErrorCode.DISK_FULL
    assert caught.value.exit_status == 5
    assert (caught.value.details["needed_mb"], caught.value.details["free_mb"]) == (6, 0)
    assert seen == []


async def test_a_disk_that_fills_up_on_the_way_is_named(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    (tmp_path / "dd").write_text(
        "#!/bin/sh\nhead -c 3000000 >/dev/null\necho 'dd: No space left on device' >&2\nexit 1\n"
    )
    (tmp_path / "dd").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    async with asyncssh_server([user_key], env=env) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError) as caught:
            await _put(connection, tmp_path / "there" / "file")
    assert caught.value.code is ErrorCode.DISK_FULL


async def test_a_source_that_cannot_be_read_is_the_callers_error(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        with pytest.raises(FileNotFoundError):
            await _put(connection, tmp_path / "there" / "file", tmp_path / "missing")
