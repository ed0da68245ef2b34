"""Identity, layout, audit log, log files, and the commands `pipe` and `inspect`."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.system import identity, logs
from rbee_remote.system.child import child_environment, describe_exit
from rbee_remote.system.command import payload_command
from rbee_remote.system.sanitize import redact, sanitize
from tests.patience import PATIENCE_S
from tests.unit.remote.hive.conftest import make_gguf


def test_a_process_is_itself_and_no_other() -> None:
    own = identity.identify(os.getpid())
    assert identity.is_same_process(own)
    assert not identity.is_same_process(dataclasses.replace(own, start_ticks=own.start_ticks + 1))
    assert not identity.is_same_process(dataclasses.replace(own, boot_id="another boot"))


def test_a_process_that_is_gone_has_no_identity() -> None:
    process = subprocess.Popen(["true"])
    before = identity.identify(process.pid)
    process.wait()
    assert not identity.is_same_process(before)
    with pytest.raises(ProcessLookupError):
        identity.identify(process.pid)


@given(st.text())
def test_a_sanitised_text_is_one_printable_line(text: str) -> None:
    assert sanitize(text).isprintable()
    assert len(sanitize(text, limit=10_000)) >= len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/m.gguf?X-Amz-Signature=abc: HTTP 403", "https://h/m.gguf?… HTTP 403"),
        ("see 'https://h/a?b=c' and http://u:p@h:1/x?y#z.", "see 'https://h/a?…' and http://h:1/x?…"),
        ("https://user@h/m@main is not https", "https://h/m@main is not https"),
        ("why? because of hf:owner/repo@main", "why? because of hf:owner/repo@main"),
    ],
)
def test_addresses_keep_their_passwords_and_signatures(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert sanitize(text) == expected


def test_secrets_are_left_out_of_an_environment() -> None:
    base = {"PATH": "/bin", "HF_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "OPENAI_API_KEY": "x", "SSH_AUTH_SOCK": "x"}
    assert child_environment(base, {"HF_TOKEN": "asked for"}) == {"PATH": "/bin", "HF_TOKEN": "asked for"}


@pytest.mark.parametrize(
    ("status", "expected"), [(3, {"exit_status": 3}), (-9, {"signal": "SIGKILL"}), (-64, {"signal": "SIGRTMAX"})]
)
def test_exit_statuses_have_names(status: int, expected: dict[str, Any]) -> None:
    assert describe_exit(status) == expected


@given(st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line and b"\r" not in line)), st.integers(0, 9))
def test_the_last_lines_are_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], n: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    expected = b"".join(line + b"\n" for line in lines[-n:]) if n else b""
    assert logs.last_lines(path, n) == expected


def test_a_log_that_grew_too_large_is_cut_and_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n" * 10)
    logs.rotate(path, max_bytes=10)
    assert path.read_bytes() == b""
    assert path.with_name("log.1").read_bytes() == b"old\n" * 10


# --- inspect -------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run(payload_command(*arguments), capture_output=True, timeout=PATIENCE_S, check=False)
    assert b"Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def test_inspect_tells_what_a_fit_needs(tmp_path: Path) -> None:
    status, meta = run("inspect", str(make_gguf(tmp_path / "tiny.gguf")))
    assert status == 0
    assert meta == {
        "architecture": "llama", "n_layers": 2, "n_ctx_train": 2048, "n_embd": 64, "n_vocab": 256, "n_head_kv": 2,
        "head_dim_k": 16, "head_dim_v": 16, "quantization": "Q8_0", "parameters": 256 * 64, "n_head": 4,
        "kv_per_token": 2 * 2 * 32, "kv_per_token_swa": 0, "n_swa": 0, "state_per_slot": 0, "tied_bytes": 0,
        "pooling": "", "whole": False, "adapter": False, "ranks": False,
    }  # fmt: skip


def test_inspect_refuses_what_is_cut_or_no_model(tmp_path: Path) -> None:
    whole = make_gguf(tmp_path / "tiny.gguf").read_bytes()
    for content in (b"", b"GGUF", b"GGUF" + bytes(60), whole[: len(whole) // 2], whole[:200], b"GGUF" + b"\xff" * 500):
        file = tmp_path / "damaged.gguf"
        file.write_bytes(content)
        status, answer = run("inspect", str(file))
        assert (status, answer["error"]["code"]) == (1, "MODEL_INVALID")
    assert run("inspect", str(tmp_path / "nothing"))[1]["error"]["code"] == "MODEL_NOT_FOUND"


# --- pipe ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        yield server


def start_pipe(listener: socket.socket, *arguments: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    command = payload_command("pipe", listener.getsockname(), *arguments)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    listener.settimeout(30)
    connection, _ = listener.accept()
    return process, connection


def test_pipe_copies_both_ways_at_once_and_passes_ends_on(listener: socket.socket) -> None:
    upward, downward = random.Random(1).randbytes(5_000_000), random.Random(2).randbytes(5_000_000)
    process, connection = start_pipe(listener, "--ready", "nonce")
    received = bytearray()

    def serve() -> None:
        sender = threading.Thread(target=connection.sendall, args=(downward,))
        sender.start()
        while chunk := connection.recv(1 << 16):
            received.extend(chunk)
        sender.join()
        connection.close()

    server = threading.Thread(target=serve)
    server.start()
    stdout, _ = process.communicate(upward, timeout=PATIENCE_S)
    server.join()
    assert process.returncode == 0
    assert bytes(received) == upward
    assert stdout == b"nonce\n" + downward


def test_pipe_ends_with_the_socket_although_stdin_stays_open(listener: socket.socket) -> None:
    process, connection = start_pipe(listener)
    connection.sendall(b"bye")
    connection.close()
    assert process.wait(PATIENCE_S) == 0
    assert process.stdout is not None
    assert process.stdout.read() == b"bye"
    process.communicate()


def test_pipe_says_when_nobody_listens(tmp_path: Path) -> None:
    status, answer = run("pipe", str(tmp_path / "nothing"))
    assert (status, answer["error"]["code"]) == (1, "WORKER_GONE")


def test_pipe_starts_with_the_standard_library_alone() -> None:
    imported = "import rbee_remote.__main__, rbee_remote.serving.pipe"
    code = f"import sys; sys.path[:0] = sys.argv[1:]; {imported}; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code, payload_command()[-1]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    heavy = {"asyncio", "anyio", "starlette", "httpx", "psutil", "numpy", "ssl"}
    assert not heavy & set(done.stdout.split())
