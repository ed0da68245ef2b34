"""Commands over the link, with real processes: the same as directly; and whatever goes wrong with it, directly."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest

from rbee.link.client import BEGIN_S, over_link
from tests.patience import PATIENCE_S
from tests.ssh.linked import HURRIED, Keeper, answer, is_running, keeper_with_worker, until, write_inventory
from tests.ssh.servers import SSHD

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's server is not installed")

INFER = ("infer", "--raw", "--node", "gpu1")
#: What a holder that is of no use may cost, as the client's own limits have it, and what its checks take.
LOST_S = 0.2


@pytest.fixture
async def keeper(user_key: asyncssh.SSHKey, identity: Path) -> AsyncIterator[Keeper]:
    async with keeper_with_worker(user_key, identity) as running:
        yield running


def audited(keeper: Keeper) -> list[dict[str, object]]:
    log = keeper.home / "log" / "audit.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def plain(text: str) -> str:
    """Without what differs from run to run: times, and the id of a request."""
    return re.sub(r"\d+\.\d+|\d{8}-\d{6}-\w+", "N", text)


#: Command lines, and what comes by standard input.
SAME: list[tuple[tuple[str, ...], bytes]] = [
    ((*INFER, "2"), b""),
    ((*INFER,), b"3"),
    ((*INFER, "-q", "--no-stream", "4"), b"\n"),
    ((*INFER, "--timing", "--max-tokens", "3", "5"), b""),
    ((*INFER, "--json", "--max-tokens", "3", "6"), b""),
    ((*INFER, "--max-tokens", "0", "7"), b""),
    ((*INFER, "--file", "/none", "7"), b""),
    (("infer", "--node", "gpu2", "8"), b""),
    (("-q", *INFER, "--max-tokens", "2", "9"), b"\xff"),
]


async def test_what_is_shown_and_recorded_is_the_same_as_directly(keeper: Keeper) -> None:
    await keeper.hold()
    (keeper.folder / "inventory.toml").write_text("")  # lies about unused: each command says so
    for words, stdin in SAME:
        runs: list[tuple[object, ...]] = []
        for link in ("off", "auto"):
            before = len(audited(keeper))
            done = await keeper(*words, link=link, stdin=stdin)
            lines = [(each["action"], each["node"], each["outcome"], each.get("finish")) for each in audited(keeper)]
            runs.append((plain(done.stdout), plain(done.stderr), done.status, lines[before:]))
        if "--timing" in words:  # nothing was spent on connecting: the same lines with other numbers
            runs = [(out, re.sub(r" +", " ", str(err)), *rest) for out, err, *rest in runs]
        assert runs[0] == runs[1], words


#: Shell words after the command, where a stream is of no use.
BAD_STREAMS = (
    "0>/dev/null",
    "<&-",
    ">&-",
    "2>&-",
    ">/dev/full",
    "--json >/dev/full",
    "2>/dev/full",
    "--nope 2>/dev/full",
)


async def test_streams_of_no_use_are_told_of_the_same_as_directly(keeper: Keeper) -> None:
    await keeper.hold()
    for words in BAD_STREAMS:
        runs: list[tuple[object, ...]] = []
        for link in ("off", "auto"):
            shell = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", f"exec {sys.executable} -m rbee {' '.join(INFER)} --max-tokens 9 2 {words}"),
                cwd=keeper.folder, env=keeper.environment(link),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, err = await shell.communicate()
            text, told = plain(out.decode()), plain(err.decode())
            if "full" in words:  # over the link the command goes on until it hears of it
                text, told = text if ">/" not in words else "", re.sub(r"✓ 8 .*\n", "", told)
            runs.append((text, told, shell.returncode))
        assert runs[0] == runs[1], words
        assert runs[0][2] == (2 if words.startswith(("0", "--nope")) else 5 if "full" in words else 0), runs[0]


async def test_streams_that_do_not_block(keeper: Keeper) -> None:
    await keeper.hold()
    reading, writing = os.pipe()
    silent, other = os.pipe()
    for descriptor in (silent, writing):
        os.set_blocking(descriptor, False)
    filled = os.write(writing, b"x" * 2**20)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rbee", *INFER, "2"), cwd=keeper.folder, env=keeper.environment("auto"),
        stdin=silent, stdout=writing, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    for descriptor in (silent, other, writing):
        os.close(descriptor)
    assert process.stderr is not None
    await process.stderr.readuntil(b"gpu1")
    with open(reading, "rb") as shown:  # noqa: PTH123 - a descriptor
        assert (await asyncio.to_thread(shown.read))[filled:].decode() == answer("2")
    assert await process.wait() == 0


@pytest.mark.parametrize("link", ["off", "auto"])
async def test_who_ignores_sighup_goes_on_after_it(keeper: Keeper, link: str) -> None:
    """As `nohup` has it."""
    await keeper.hold()
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f"trap '' HUP; exec {sys.executable} -m rbee {' '.join(INFER)} --max-tokens 200 endless"),
        cwd=keeper.folder, env=keeper.environment(link),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await process.stdout.readexactly(20)
    process.send_signal(signal.SIGHUP)
    _, err = await process.communicate()
    assert (process.returncode, b"canceled" in err) == (0, False), err


async def test_a_home_named_from_a_folder_that_is_gone_is_told_of(keeper: Keeper) -> None:
    script = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -m rbee {' '.join(INFER)} 2"
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", script, cwd=keeper.folder, env=keeper.environment("auto") | {"RBEE_HOME": "x"},
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await shell.communicate()
    assert shell.returncode == 2
    assert "RBEE_HOME is x, in a folder that is gone" in err.decode()


async def test_a_home_named_from_the_current_folder_has_its_holder(keeper: Keeper) -> None:
    for _ in range(2):
        done = await keeper(*INFER, "2", link="on", RBEE_HOME="keeper")
        assert (done.status, done.stdout) == (0, answer("2")), done.stderr
        await until(keeper.holds)
    done = await keeper(*INFER, "--timing", "2", RBEE_HOME="keeper")
    assert re.search(r"connect +0\.0+ s", done.stderr), done.stderr  # over the link


async def test_a_gateway_that_ends_lets_running_commands_finish_and_takes_no_other(keeper: Keeper) -> None:
    async with keeper.start("serve", "--listen", "127.0.0.1:0") as gateway:
        await until(keeper.holds)
        async with keeper.start(*INFER, "--max-tokens", "400", "endless") as process:
            assert process.stdout is not None
            process.stdin.close()  # type: ignore[union-attr]
            begun = await process.stdout.readexactly(20)
            assert (keeper.status() or {})["commands"] == 1
            assert (keeper.status() or {})["serving"] == {"running": 0, "waiting": []}
            gateway.terminate()
            assert gateway.stderr is not None
            await gateway.stderr.readuntil(b"ending: 1 request ")
            assert (await keeper(*INFER, "2")).stdout == answer("2")  # directly
            rest, err = await process.communicate()
            assert (process.returncode, (begun + rest).count(b"endless.") > 20) == (0, True), err
        assert await gateway.wait() == 0


async def test_ctrl_c_over_the_link_frees_the_slot(keeper: Keeper) -> None:
    await keeper.hold()
    for number in (signal.SIGINT, signal.SIGTERM):
        async with keeper.start(*INFER, "endless") as process:
            assert process.stdout is not None
            process.stdin.close()  # type: ignore[union-attr]
            await process.stdout.readexactly(20)
            process.send_signal(number)
            _, err = await process.communicate()
            assert process.returncode == 130
            assert "canceled" in err.decode()
        await until(lambda: (keeper.status() or {}).get("commands") == 0)
    assert [each["outcome"] for each in audited(keeper)][-2:] == ["REQUEST_CANCELED"] * 2


async def test_a_client_that_dies_cancels_its_command(keeper: Keeper) -> None:
    await keeper.hold()
    async with keeper.start(*INFER, "endless") as process:
        assert process.stdout is not None
        process.stdin.close()  # type: ignore[union-attr]
        await process.stdout.readexactly(20)
        process.kill()
        await until(lambda: (keeper.status() or {}).get("commands") == 0)


async def test_a_reader_who_has_enough_ends_the_command(keeper: Keeper) -> None:
    await keeper.hold()
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *("rbee", *INFER, "endless"), executable=shutil.which("rbee") or "rbee", cwd=keeper.folder,
        stdin=asyncio.subprocess.DEVNULL, stdout=writing, stderr=asyncio.subprocess.PIPE,
        env=keeper.environment("auto") | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    os.close(writing)
    assert os.read(reading, 1)
    os.close(reading)
    _, err = await process.communicate()
    assert process.returncode == 0, err
    await until(lambda: (keeper.status() or {}).get("commands") == 0)


async def test_a_holder_that_dies_in_mid_answer_is_told_of_and_the_text_is_kept(keeper: Keeper) -> None:
    holder = await keeper.hold()
    async with keeper.start(*INFER, "endless") as process:
        assert process.stdout is not None
        process.stdin.close()  # type: ignore[union-attr]
        begun = await process.stdout.readexactly(20)
        os.kill(holder, signal.SIGKILL)
        rest, err = await process.communicate()
    assert process.returncode == 3
    (saved,) = (keeper.home / "log").glob("answer-*.txt")
    assert saved.read_bytes() == begun + rest
    assert f"saved: {saved}" in err.decode()
    assert audited(keeper)[-1]["outcome"] == "CONNECTION_LOST"
    done = await keeper(*INFER, "2")  # past the socket that nobody listens at
    assert (done.status, done.stdout) == (0, answer("2")), done.stderr


async def test_a_holder_that_is_stopped_or_gone_costs_little_and_nothing_runs_twice(keeper: Keeper) -> None:
    holder = await keeper.hold()
    os.kill(holder, signal.SIGSTOP)
    try:
        done = await keeper(*INFER, "2", PYTHONPATH=HURRIED)
        assert (done.status, done.stdout) == (0, answer("2")), done.stderr
    finally:
        before = len(audited(keeper))
        os.kill(holder, signal.SIGCONT)
    # Stopped for so long that its connection counts as lost, it holds nothing any more and ends.
    await until(lambda: not is_running(holder) or (keeper.status() or {}).get("commands") == 0)
    assert len(audited(keeper)) == before


async def test_it_is_not_used_for_another_environment_or_by_another_rbee(keeper: Keeper) -> None:
    await keeper.hold()
    done = await keeper(*INFER, "2", HF_HOME="/elsewhere")
    assert (done.status, done.stdout) == (0, answer("2")), done.stderr
    assert (keeper.status() or {})["left_s"] < 60
    request = {"code": ["another"], "words": ["infer"], "folder": "/", "environment": {}, "out": {}, "err": {}}
    reader, writer = await asyncio.open_unix_connection(keeper.socket)
    writer.write(json.dumps(request).encode() + b"\n")
    assert json.loads(await reader.readline()) == {"direct": "it is another rbee"}
    writer.close()
    await until(lambda: keeper.status() is None)  # it makes room for one of that code


async def test_it_ends_with_its_home_its_time_or_when_it_is_told(keeper: Keeper, identity: Path) -> None:
    holder = await keeper.hold()
    done = await keeper("link", "stop", "--json")
    assert json.loads(done.stdout) == {"stopped": holder}
    await until(lambda: not is_running(holder))
    assert json.loads((await keeper("link", "status", "--json")).stdout) == {"held": None}

    write_inventory(keeper, identity, persist='"3s"')
    holder = await keeper.hold()
    await until(lambda: not is_running(holder))

    write_inventory(keeper, identity, persist='"0"')
    assert (await keeper(*INFER, "1", link="on")).status == 0
    assert keeper.status() is None

    write_inventory(keeper, identity)
    holder = await keeper.hold()
    shutil.rmtree(keeper.home / "link")
    await until(lambda: not is_running(holder))


async def test_none_is_left_without_a_terminal_and_one_at_a_time(keeper: Keeper) -> None:
    assert (await keeper(*INFER, "1", link="off")).status == 0
    assert keeper.status() is None
    holders = await asyncio.gather(*(keeper(*INFER, "1", link="on") for _ in range(3)))
    assert [done.status for done in holders] == [0, 0, 0]
    await until(keeper.holds)
    holder = (keeper.status() or {})["pid"]
    assert (await keeper(*INFER, "1", link="on")).status == 0
    assert (keeper.status() or {})["pid"] == holder


async def test_it_ends_with_the_shell_that_its_command_was_typed_into(keeper: Keeper) -> None:
    script = f"{sys.executable} -m rbee {' '.join(INFER)} 1 </dev/null >/dev/null 2>&1; read line"
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", script, stdin=pipe, cwd=keeper.folder, env=keeper.environment("on"), start_new_session=True
    )
    try:
        await until(keeper.holds)
        holder = (keeper.status() or {})["pid"]
        assert os.getsid(holder) == holder
    finally:
        await shell.communicate(b"\n")
    await until(lambda: not is_running(holder))


async def test_a_terminal_is_written_to_as_its_own_variables_say(keeper: Keeper) -> None:
    """The holder has none; a gateway that systemd started has none either."""
    await keeper.hold()
    shown = []
    for link in ("off", "auto"):
        controller, terminal = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rbee", "nodes", "ping", "gpu1"), cwd=keeper.folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=terminal, stderr=terminal,
            env=keeper.environment(link) | {"TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(terminal)
        assert await process.wait() == 0
        shown.append(re.sub(rb"[0-9.]+ ms|[ \xe2\x94\x80]+", b"", os.read(controller, 2**16)))
        os.close(controller)
    assert shown[0] == shown[1]
    assert b"\x1b[1m" in shown[0]


@contextmanager
def impostor(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something else at the link's socket."""
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(5)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def says(data: bytes) -> Callable[[socket.socket], None]:
    def serve(listener: socket.socket) -> None:
        held = []
        try:
            while True:
                connection, _ = listener.accept()
                held.append(connection)
                connection.sendall(data)
        except OSError:
            for connection in held:
                connection.close()

    return serve


#: What may answer there, and for how long the client puts up with it: what has accepted has longer to begin.
USELESS: dict[str, tuple[bytes, float]] = {
    "silent": (b"", LOST_S),
    "empty": (b"\n", LOST_S),
    "garbage": (b"garbage\n", LOST_S),
    "list": (b"[]\n", LOST_S),
    "no end": (b"\xff" * 100_000, LOST_S),
    "accepts": (b'{"accepted": 1}\n', BEGIN_S + LOST_S),
    "ends": (b'{"accepted": 1}\n{"end": 7}\n', LOST_S),
}


@pytest.mark.parametrize("name", USELESS)
async def test_whatever_listens_there_the_direct_way_is_open_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, within_s = USELESS[name]
    monkeypatch.setenv("RBEE_HOME", str(tmp_path))
    monkeypatch.setenv("RBEE_LINK", "auto")
    with impostor(tmp_path / "link" / "link.sock", says(data)):
        # The shortest of several tries counts: a busy machine makes some longer, and none shorter.
        begun, took_s = time.monotonic(), float("inf")
        while took_s >= within_s and time.monotonic() - begun < PATIENCE_S / 8:
            began = time.monotonic()
            assert over_link(["infer", "1"]) is None
            took_s = time.monotonic() - began
        assert took_s < within_s


async def test_a_command_is_answered_whatever_listens_there(keeper: Keeper) -> None:
    with impostor(keeper.socket, says(b"garbage\n")):
        done = await keeper(*INFER, "2", link="on", PYTHONPATH=HURRIED)
    assert (done.status, done.stdout) == (0, answer("2")), done.stderr
