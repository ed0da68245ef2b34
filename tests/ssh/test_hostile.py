"""A node that lies, talks without end, or sends what a terminal obeys: the keeper says what is wrong, and is well."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from rbee.base.errors import RbeeError
from rbee.base.settings import Settings
from rbee.infer.infer import infer
from rbee.infer.request import InferRequest
from rbee.inventory import load
from rbee.node.probe import probe
from rbee_remote.protocol import ErrorCode, Message
from tests.hostile import MESSAGES, answer
from tests.patience import PATIENCE_S
from tests.ssh.conftest import Connect
from tests.ssh.hostile_node import (
    Process,
    Shell,
    between_markers,
    faithful,
    hive_and_worker,
    hostile_node,
    probe_answer,
)
from tests.ssh.servers import Server
from tests.testbed.cli import Rbee, Result
from tests.testbed.loopback import context_of

#: A colour, the clipboard, a C1 sequence, a bell, a return and a backspace, text turned around, a name that looks like
#: another, quotes and a path.
EVIL = "\x1b[31mEVIL\x1b]52;c;QQ==\x07\x9b2J\rX\x08\u202eY\u200bZ'\"$(reboot)/../../x"
#: Nothing of this may reach a terminal.
OBEYED = re.compile("\x1b\\[31mEVIL|\x1b\\]|[\x07\x08\x80-\x9f\u202a-\u202e\u2066-\u2069]|\r(?![\n\x1b]|$)")


@pytest.fixture
def keeper(tmp_path: Path) -> Rbee:
    home, run_dir = tmp_path / "keeper", tmp_path / "run"
    for folder in (home, run_dir):
        folder.mkdir(mode=0o700)
    return Rbee(home, run_dir, {"RBEE_WHEEL_CACHE": str(tmp_path / "wheels")})


def introduce(keeper: Rbee, server: Server, identity: Path) -> None:
    keeper.inventory.write_text(
        f'[nodes.gpu1]\nhost = "127.0.0.1"\nport = {server.port}\nuser = "bee"\nidentity_file = "{identity}"\n'
        f'host_key = "{server.host_keys[0]}"\nbackend = "cpu"\n'
    )


async def run(keeper: Rbee, *words: str, **options: Any) -> Result:
    """A command, while the node lives in this loop. It says what is wrong, without a traceback."""
    result = await asyncio.to_thread(keeper, *words, status=None, timeout=PATIENCE_S, **options)
    assert result.status != 1, result
    return result


def evil(message: Any) -> Any:
    """The message with the text added to whatever is text and not checked otherwise."""
    checked = {"id", "socket", "state", "code", "payload", "runtime", "backend", "model", "secret", "pooling"}
    if isinstance(message, dict):
        return {key: value if key in checked else evil(value) for key, value in message.items()}
    if isinstance(message, (list, tuple)):
        return [evil(item) for item in message]
    return message + EVIL if isinstance(message, str) else message


def evil_answers(request: str) -> bytes:
    """Valid, but for the text in every field; in the answer one escape is split over two tokens."""
    if request.startswith("POST /v1/inference"):
        events = [list(pair) for pair in MESSAGES["answer"]]
        events[1][1] = {"text": "Pa\x1b", "tokens": 1}
        events[2][1] = {"text": "[31mEVIL\x1b]0;title\x07\u202e\r👩\u200d🚀\tris\n", "tokens": 2}
        return answer(events)
    head, body = hive_and_worker(request).split(b"\r\n\r\n", 1)
    del head
    said = evil(json.loads(body))
    return answer(said | {"payload": json.loads(body)["payload"]} if "payload" in said else said)


async def evil_shell(process: Process, nonce: str, script: str) -> None:
    process.stdout.write(EVIL.encode() + b"\n")
    process.stderr.write(EVIL.encode() + b"\n")
    if "home_wanted" in script:
        lines = probe_answer().decode().splitlines()
        texts = ("user=", "os=", "boot_id=", "cuda_version=", "compiler=", "shell=", "tmp_problem=")
        said = "\n".join(line + EVIL.replace("\n", "") if line.startswith(texts) else line for line in lines)
        await between_markers(process, nonce, said.encode())
    elif "tail -n" in script:
        await between_markers(process, nonce, f"found\n{EVIL}\n".encode() * 3)
    else:
        await faithful(process, nonce, script)


COMMANDS = (
    ("workers", "list"),
    ("models", "list"),
    ("hive", "status"),
    ("logs", "gpu1"),
    ("nodes", "check", "gpu1"),
    ("infer", "--node", "gpu1", "--max-tokens", "20", "Hello"),
)


async def test_what_a_node_says_steers_no_terminal_and_names_no_file(
    keeper: Rbee, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    def outside() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if keeper.home not in path.parents}

    before = outside()
    async with hostile_node(user_key, shell=evil_shell, serve=evil_answers, banner=EVIL) as server:
        introduce(keeper, server, identity)
        for words in COMMANDS:
            shown = await asyncio.to_thread(on_terminal, keeper, *words)
            assert "EVIL" in shown, (words, shown)
            assert "Traceback" not in shown
            assert OBEYED.search(shown) is None, (words, shown)
        assert "Pa\\x1b[31mEVIL\\x1b]0;title\\x07\\u202e\\x0d👩\u200d🚀\tris" in shown
        verbose = await asyncio.to_thread(on_terminal, keeper, "-vv", "nodes", "ping", "gpu1")
        assert OBEYED.search(verbose) is None
    assert outside() == before
    assert not any("EVIL" in path.name for path in keeper.home.rglob("*"))


async def test_into_a_pipe_the_answer_goes_as_it_is_and_json_is_json(
    keeper: Rbee, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with hostile_node(user_key, shell=evil_shell, serve=evil_answers) as server:
        introduce(keeper, server, identity)
        done = await run(keeper, "infer", "--node", "gpu1", "--max-tokens", "20", "Hello")
        # subprocess' text mode turns a lone return into a newline
        assert done.stdout == "Pa\x1b[31mEVIL\x1b]0;title\x07\u202e\n👩\u200d🚀\tris\n", done
        assert OBEYED.search(done.stderr) is None
        log = await run(keeper, "logs", "gpu1")
        assert log.stdout.startswith(EVIL.replace("\r", "\n"))
        listed = await run(keeper, "workers", "list", "--json")
        assert listed.json()[0]["device"] == "cpu" + EVIL
        lines = (await run(keeper, "logs", "gpu1", "--json")).lines()
        assert lines[0] == {"line": EVIL}


# --- shells ---------------------------------------------------------------------------------------------------------


def says(*pieces: bytes, then: bytes = b"", stderr: bytes = b"") -> Shell:
    """A shell that prints pieces with `NONCE` filled in; `then` and `stderr` for ever."""

    async def shell(process: Process, nonce: str, _: str) -> None:
        for piece in pieces:
            process.stdout.write(piece.replace(b"NONCE", nonce.encode()))
        while then or stderr:
            process.stdout.write(then)
            process.stderr.write(stderr)
            await process.stdout.drain()
            await process.stderr.drain()
            await asyncio.sleep(0)

    return shell


BEGIN, END = b"rbee-begin:NONCE\n", b"rbee-end:NONCE:0\n"
SHELLS = {
    "nothing": says(),
    "noise without end": says(then=b"x" * 2**16),
    "lines without end": says(then=b"\n" * 2**16),
    "answer without end": says(BEGIN, then=b"x" * 2**16),
    "answer of lines without end": says(BEGIN, then=b"a=b\n" * 2**14),
    "nonce of another": says(b"rbee-begin:" + b"0" * 32 + b"\nsystem=Linux\n", b"rbee-end:" + b"0" * 32 + b":0\n"),
    "end before the beginning": says(END, BEGIN),
    "end alone": says(END),
    "beginning alone": says(BEGIN),
    "status of 999": says(BEGIN, b"rbee-end:NONCE:999\n"),
    "status of letters": says(BEGIN, b"rbee-end:NONCE:zero\n", then=b"x" * 2**16),
    "no text": says(BEGIN, b"\xff\xfe\x00\x80" * 1000 + b"\n", END),
    "values of a megabyte": says(BEGIN, b"system=" + b"L" * 2**20 + b"\nhome=/" + b"h" * 2**20 + b"\n", END),
    "home of all": says(BEGIN, b"system=Linux\nhome=/\n", END),
    "home that is relative": says(BEGIN, b"system=Linux\nhome=../../etc\n", END),
    "HTTP": says(b"HTTP/1.1 200 OK\r\n\r\n"),
}


@pytest.mark.parametrize("what", SHELLS)
async def test_a_shell_that_talks_nonsense_is_an_error_soon(
    what: str, connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with hostile_node(user_key, shell=SHELLS[what]) as server:
        node = server.node(identity)
        began = time.monotonic()
        async with connect(node) as connection:
            try:
                found = await probe(connection, node)
            except RbeeError as error:
                assert error.code is not ErrorCode.INTERNAL
            else:
                assert what == "values of a megabyte"
                assert len(found.home) < 5000
        assert time.monotonic() - began < PATIENCE_S


async def test_stderr_without_end_stops_no_answer(connect: Connect, user_key: asyncssh.SSHKey, identity: Path) -> None:
    async def shell(process: Process, nonce: str, script: str) -> None:
        process.stderr.write(b"e" * 2**22)
        await faithful(process, nonce, script)

    async with hostile_node(user_key, shell=shell) as server:
        node = server.node(identity)
        async with connect(node) as connection:
            assert (await probe(connection, node)).home == "/h"


# --- hives and workers ----------------------------------------------------------------------------------------------


def told(changes: dict[str, bytes]) -> Any:
    """As it should be, but for requests that begin like this."""

    def serve(request: str) -> bytes:
        return next((said for start, said in changes.items() if request.startswith(start)), hive_and_worker(request))

    return serve


def inference(*events: tuple[str, Any]) -> dict[str, bytes]:
    return {"POST /v1/inference": answer([list(event) for event in events])}


STARTED, TOKEN, LAST, DONE = MESSAGES["answer"]
ANSWERS = {
    "two starts": inference(STARTED, STARTED, TOKEN, DONE),
    "no start": inference(TOKEN, DONE),
    "fewer tokens than before": inference(STARTED, LAST, TOKEN, DONE),
    "negative tokens": inference(STARTED, ("token", {"text": "x", "tokens": -1}), DONE),
    "more tokens than asked for": inference(STARTED, ("token", {"text": "x", "tokens": 21}), DONE),
    "more text than tokens": inference(STARTED, ("token", {"text": "x" * 900_000, "tokens": 1}), DONE),
    "a start of many": inference(("started", STARTED[1] | {"max_tokens": 2**40}), DONE),
    "absurd usage": inference(
        STARTED, ("done", DONE[1] | {"usage": {"prompt_tokens": -5, "completion_tokens": 2**60}})
    ),
    "unknown event": inference(STARTED, ("surprise", {})),
    "error of lists": inference(("error", {"error": {"code": [], "message": {}, "hint": 5, "details": "x"}})),
    "error without end": {"POST /v1/inference": b"HTTP/1.1 500 X\r\n\r\n" + b"x" * 5 * 2**20},
    "a hive of nonsense": {"GET /v1/health": b"\0" * 1000},
    "workers of nonsense": {"POST /v1/workers": answer({"workers": []})},
    "worker elsewhere": {"POST /v1/workers": answer(MESSAGES["worker"] | {"socket": "../../etc/shadow"})},
    "a model of nonsense": {"GET /v1/models": answer({"models": [{"model": "smollm2:135m"}]})},
}


async def test_answers_that_cannot_be_end_with_an_error_and_a_hint(
    keeper: Rbee, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    said: dict[str, bytes] = {}
    async with hostile_node(user_key, serve=told(said)) as server:
        introduce(keeper, server, identity)
        settings = Settings(home=keeper.home)
        context = context_of(settings, load(keeper.inventory, settings))
        request = InferRequest(messages=(Message("user", "Hello"),), node="gpu1", max_tokens=20)
        assert (await infer(request, context)).usage.completion_tokens == 2
        for what, changes in ANSWERS.items():
            said.clear()
            said.update(changes)
            with context.open_registry() as registry:
                registry.forget_node("gpu1")  # or a warm worker would be asked, and no hive
            with pytest.raises(RbeeError) as caught:
                await infer(request, context)
            assert caught.value.code is ErrorCode.INVALID_RESPONSE, (what, caught.value)
            assert caught.value.message != "", what


#: Runs a command, and says at the end how much memory it had at most, in KB.
AND_ITS_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, end="")
"""


async def test_an_answer_without_end_costs_the_keeper_little(
    keeper: Rbee, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    said = {"GET /v1/workers": b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 2**25}
    async with hostile_node(user_key, serve=told(said)) as server:
        introduce(keeper, server, identity)
        told_to = [sys.executable, "-c", AND_ITS_MEMORY, sys.executable, "-m", "rbee", "workers", "list", "--json"]
        process = await asyncio.create_subprocess_exec(
            *told_to, env=keeper.environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await process.communicate()
    answer, peak_kb = output.decode().rsplit("\n", 1)
    assert json.loads(answer)[0]["error"]["code"] == "INVALID_RESPONSE"
    assert int(peak_kb) < 400_000


# --- a terminal -----------------------------------------------------------------------------------------------------


def on_terminal(keeper: Rbee, *words: str) -> str:
    """What a command writes to a terminal that is its stdout and stderr, colours off."""
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []
    reader = threading.Thread(target=lambda: pieces.extend(_read(ours)))
    reader.start()
    try:
        subprocess.run(
            [sys.executable, "-m", "rbee", *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=keeper.environment() | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "400"},
            cwd=keeper.user_home.parent,
            timeout=PATIENCE_S,
            check=False,
        )
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return b"".join(pieces).decode()


def _read(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            yield os.read(terminal, 2**16)
        except OSError:  # the other side is closed
            return
