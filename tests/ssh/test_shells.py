"""Scripts reach every login shell, and their answers come back as they are."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.inventory import Node
from rbee.node.probe import probe
from rbee.transport.connection import Connection
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.ssh.conftest import Connect
from tests.ssh.servers import asyncssh_server

SHELLS = [name for name in ("sh", "dash", "bash", "zsh", "fish", "tcsh", "mksh") if shutil.which(name)]

TRICKY = """printf 'a\\0b'
read -r line && echo "swallowed: $line"
echo "rbee-end is no marker: it's \\"quoted\\" $((6 * 7))"
cat <<'EOF'
here $HOME
EOF
echo oops >&2
(exit 3)"""


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_script_runs_the_same_in_every_login_shell(
    shell: str, connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    path = shutil.which(shell)
    assert path
    async with asyncssh_server([user_key], shell=[path]) as server, connect(server.node(identity)) as connection:
        done = await connection.run(TRICKY)
    assert done.stdout == b'a\0brbee-end is no marker: it\'s "quoted" 42\nhere $HOME\n'
    assert done.status == 3
    assert "oops" in done.stderr
    assert done.noise == b""


async def test_the_noise_of_an_rc_file_is_kept_apart(
    tmp_path: Path, connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    noisy = tmp_path / "noisy"
    noisy.write_text('#!/bin/sh\necho "Welcome!"; echo "rbee-begin:no"; printf "no newline"; exec /bin/sh "$@"\n')
    noisy.chmod(0o755)
    async with asyncssh_server([user_key], shell=[str(noisy)]) as server, connect(server.node(identity)) as connection:
        done = await connection.run("echo answer")
        found = await probe(connection, Node("gpu1"))
    assert done.stdout == b"answer\n"
    assert done.noise == b"Welcome!\nrbee-begin:no\nno newline"
    assert found.shell_noise_bytes == len(done.noise)


@pytest.mark.parametrize(
    "rc", ["sleep 600", "cat", "exec fish", "exec tcsh", "while read line; do :; done", "head -c 100000 >/dev/null"]
)
async def test_a_shell_that_does_not_start_is_given_up_and_its_rc_files_are_suspected(
    rc: str,
    tmp_path: Path,
    connect: Connect,
    user_key: asyncssh.SSHKey,
    identity: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rbee.transport.script.SHELL_START_S", 0.4)
    shell = _shell_with(tmp_path, f"echo checking quota >&2; {rc}")
    async with asyncssh_server([user_key], shell=[shell]) as server, connect(server.node(identity)) as connection:
        attempts: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: connection.run("echo in"),
            lambda: connection.put(b"x", f"{tmp_path}/x", sha256="0" * 64),
            lambda: _first_line(connection),
        )
        async with asyncio.timeout(PATIENCE_S):
            for attempt in attempts:
                said = ""
                while not said:  # a busy machine does not come so far in that time
                    with pytest.raises(ConnectError, match="did not start") as caught:
                        await attempt()
                    assert caught.value.code is ErrorCode.CONNECTION_TIMEOUT
                    assert ".bashrc" in caught.value.hint
                    said = caught.value.details["said"]


@pytest.mark.parametrize("rc", ["sleep 1", "read one; read two", "exec zsh", "exec bash", "set -e; export SHELLOPTS"])
async def test_a_shell_that_takes_its_time_and_reads_stdin_runs_scripts(
    rc: str, tmp_path: Path, connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    if rc.startswith("exec ") and shutil.which(rc.removeprefix("exec ")) is None:
        pytest.skip("that shell is not installed")
    shell = _shell_with(tmp_path, rc)
    async with asyncssh_server([user_key], shell=[shell]) as server, connect(server.node(identity)) as connection:
        assert (await connection.run(TRICKY)).status == 3
        content = bytes(range(256)) * 10_000
        digest = hashlib.sha256(content).hexdigest()
        await connection.put(content, f"{tmp_path}/put", sha256=digest)
        assert (tmp_path / "put").read_bytes() == content


async def test_a_megabyte_of_noise_is_no_obstacle_and_noise_without_end_is_one(
    tmp_path: Path, connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    shell = _shell_with(tmp_path, "head -c 2000000 /dev/urandom; head -c 1000000 /dev/zero >&2")
    async with asyncssh_server([user_key], shell=[shell]) as server, connect(server.node(identity)) as connection:
        done = await connection.run("echo answer")
    assert (done.stdout, len(done.noise)) == (b"answer\n", 2_000_000)
    shell = _shell_with(tmp_path, "exec yes")
    async with asyncssh_server([user_key], shell=[shell]) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError, match="prints without end") as caught:
            await connection.run("echo answer")
    assert ".bashrc" in caught.value.hint


async def test_an_account_without_a_shell_is_named_so(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    nologin = tmp_path / "nologin"
    nologin.write_text("#!/bin/sh\necho This account is not available.\nexit 1\n")
    nologin.chmod(0o755)
    async with (
        asyncssh_server([user_key], shell=[str(nologin)]) as server,
        connect(server.node(identity)) as connection,
    ):
        with pytest.raises(NodeError) as caught:
            await connection.run("echo hi")
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert caught.value.details == {"status": 1, "said": "This account is not available."}


async def test_lines_are_streamed_as_they_come_and_leaving_ends_the_script(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        async with connection.stream_script("echo $$; sleep 600 & echo $!; wait") as lines:
            pids = [int(await anext(lines)), int(await anext(lines))]
            assert all(_runs(pid) for pid in pids)
        async with asyncio.timeout(PATIENCE_S):
            while any(_runs(pid) for pid in pids):
                await asyncio.sleep(0.02)
    assert not any(_runs(pid) for pid in pids)


async def test_a_script_that_does_not_end_is_given_up_and_ended(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        async with asyncio.timeout(PATIENCE_S):
            while not (pid_file.exists() and pid_file.read_text()):  # a busy machine does not come so far in a second
                with pytest.raises(ConnectError) as caught:
                    await connection.run(f"echo $$ > {pid_file}; exec sleep 600", timeout=1)
                assert caught.value.code is ErrorCode.CONNECTION_TIMEOUT
            while _runs(int(pid_file.read_text())):
                await asyncio.sleep(0.02)
        assert (await connection.run("echo still here")).stdout == b"still here\n"


async def test_a_long_answer_and_long_stderr_come_through(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        done = await connection.run("head -c 5000000 /dev/zero >&2; head -c 3000000 /dev/zero")
    assert len(done.stdout) == 3_000_000
    assert 0 < len(done.stderr) <= 2**16


async def test_an_endless_answer_is_refused(connect: Connect, user_key: asyncssh.SSHKey, identity: Path) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError, match="longer than 16 MiB"):
            await connection.run("yes")


async def test_a_connection_that_drops_in_the_middle_is_lost(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        running = asyncio.create_task(connection.run("echo before; sleep 600"))
        await connection.run("true")
        server.connections[-1].abort()
        with pytest.raises(ConnectError) as caught:
            await running
    assert caught.value.code is ErrorCode.CONNECTION_LOST


async def test_canceling_a_script_leaves_the_connection_usable(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        running = asyncio.create_task(connection.run("sleep 600"))
        await connection.run("true")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await connection.run("echo on")).stdout == b"on\n"


async def test_a_script_that_kills_its_shell_has_a_status(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        done = await connection.run(f"echo last words; kill -{signal.SIGKILL.value} $$")
    assert done.stdout == b"last words\n"
    assert done.status != 0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _shell_with(folder: Path, rc: str) -> str:
    """A login shell that does what rc files do, and then runs its command."""
    path = folder / "login"
    path.write_text(f'#!/bin/bash\n{rc}\nexec /bin/sh "$@"\n')
    path.chmod(0o755)
    return str(path)


async def _first_line(connection: Connection) -> bytes:
    async with connection.stream_script("echo in") as lines:
        return await anext(lines)
