"""What is secret stays where it was: tokens, passphrases and signatures are in nothing that is shown, kept or seen."""

from __future__ import annotations

import os
import pty
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from tests import tiny_models
from tests.hub import Hub, Trouble, running_hub
from tests.patience import PATIENCE_S
from tests.testbed.cli import Rbee, Result

REPO = "bees/Tiny-GGUF"
REF = f"hf:{REPO}:Q4_1"
CANARY = "canary5ecret"
TOKEN = f"hf_{CANARY}token"
PASSPHRASE = f"{CANARY}passphrase"
SIGNED = f"X-Amz-Signature={CANARY}signature&X-Amz-Credential={CANARY}&key={CANARY}key"
ENVIRONMENT = {
    "OPENAI_API_KEY": f"sk-{CANARY}",
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "AWS_SESSION_TOKEN": CANARY,
    "GITHUB_TOKEN": f"ghp_{CANARY}",
    "DATABASE_PASSWORD": CANARY,
    "SERVICE_CREDENTIALS": CANARY,
}


@pytest.fixture
def tiny(tmp_path: Path) -> bytes:
    return tiny_models.write(tmp_path / "tiny.gguf", "llama").read_bytes()


@pytest.fixture
def hub(tiny: bytes) -> Iterator[Hub]:
    with running_hub(tls=True) as started:
        started.add(REPO, "tiny-Q4_1.gguf", tiny + bytes(32))
        started.token = TOKEN
        yield started


@contextmanager
def watched(rbee: Rbee) -> Iterator[list[str]]:
    """Looks into argv and environment of every process of the node, again and again; what it finds there."""
    found: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            for process in rbee.node_processes():
                try:
                    seen = " ".join([*process.cmdline(), *process.environ().values()])
                except psutil.Error:
                    continue  # it has ended
                if CANARY in seen:
                    found.append(f"{process.pid}: {seen}")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def files_with_it(*folders: Path) -> list[Path]:
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path.stat().st_size < 50_000_000 and CANARY.encode() in path.read_bytes()]


def test_tokens_and_signatures_stay_with_the_keeper(rbee: Rbee, hub: Hub, tiny: bytes) -> None:
    token_file = rbee.user_home / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(TOKEN)
    by_file = {**ENVIRONMENT, **hub.env, "HF_TOKEN_PATH": str(token_file)}
    by_variable = {**ENVIRONMENT, **hub.env, "HF_TOKEN": TOKEN}
    signed = f"{hub.add_plain('signed.gguf', tiny + bytes(64))}?{SIGNED}"
    results: list[Result] = []

    def run(*args: str, status: int, env: dict[str, str]) -> Result:
        results.append(rbee(*args, "-vv", status=status, env=env))
        return results[-1]

    with watched(rbee) as seen:
        run("infer", "--model", REF, "--raw", "--max-tokens", "1", "Hello", status=0, env=by_file)
        run("models", "pull", "local", signed, status=0, env=by_variable)
        run("models", "list", "local", "--json", status=0, env=by_variable)
        run("infer", "--model", signed, "--raw", "--max-tokens", "1", "Hello", "--json", status=0, env=by_variable)
        run("workers", "list", "--json", status=0, env=by_variable)
        run("models", "push", "local", f"hf:{REPO}", status=0, env=by_variable)
        run("models", "pull", "local", f"{hub.url}/plain/none.gguf?{SIGNED}", "--json", status=6, env=by_variable)
        run("models", "pull", "local", f"ftp://host/x?{SIGNED}", status=2, env=by_variable)
        hub.token = "another"
        run("models", "pull", "local", f"{REF}@main", status=6, env=by_variable)
        hub.token, hub.trouble = TOKEN, Trouble(status=403)
        run("models", "pull", "local", f"hf:{REPO}:tiny-Q4_1.gguf", "--json", status=6, env=by_file)
        run("models", "push", "local", f"hf:{REPO}:tiny-Q4_1.gguf", "--json", status=6, env=by_variable)
        run("audit", "list", "--json", status=0, env=by_variable)
    used = {request.headers.get("authorization") for request in hub.seen}
    assert f"Bearer {TOKEN}" in used  # the canary was there to be lost

    token_file.chmod(0o640)
    refused = run("models", "pull", "local", REF.replace("Q4_1", "tiny-Q4_1.gguf"), status=2, env=by_file)
    assert "can be read by other users" in refused.stderr
    assert [line for result in results for line in (result.stdout + result.stderr).splitlines() if CANARY in line] == []
    assert seen == []
    token_file.unlink()
    assert files_with_it(rbee.home, rbee.user_home, rbee.run_dir) == []
    names = [entry.get("model") for entry in rbee("audit", "list", "--lines", "100", "--json").json()]
    assert any(name and name.startswith(f"{hub.url}/plain/signed.gguf#") for name in names)


WATCH = """
printf %s "$1" > /tmp/.canary
while [ -e /tmp/.canary ]; do
    grep -alF -f /tmp/.canary /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null >> /tmp/.seen
    sleep 0.1
done
"""


@pytest.mark.container
def test_passphrase_and_environment_stay_with_the_keeper(
    rbee: Rbee, ready_node: Callable[..., Any], tmp_path: Path
) -> None:
    node = ready_node()
    encrypted = tmp_path / "id_encrypted"
    asyncssh.read_private_key(node.key.private).write_private_key(encrypted, "openssh", PASSPHRASE)
    encrypted.chmod(0o600)
    rbee.inventory.write_text(node.inventory(identity_file=f'"{encrypted}"'))
    watch = threading.Thread(target=node.try_exec, args=(f"set -- {CANARY}\n{WATCH}",))
    watch.start()
    try:
        shown = typed(rbee, PASSPHRASE, "infer", "--node", "gpu1", "-vv", "--max-tokens", "1", "Hello")
        shown += typed(rbee, f"wrong {CANARY}", "nodes", "check", "gpu1", "-vv", status=4)
        refused = rbee("infer", "--node", "gpu1", "-vv", "--json", "Hello", status=4, env=ENVIRONMENT)
        typed(rbee, PASSPHRASE, "hive", "stop", "gpu1")
    finally:
        node.exec("rm -f /tmp/.canary")
        watch.join()
    assert "phrase" in shown  # it was asked for
    assert CANARY not in shown + refused.stdout + refused.stderr
    # Ours is the shell that was given the canary as its argument.
    assert node.exec("sort -u /tmp/.seen | grep -v '^/proc/self' | wc -l").strip() in ("0", "1")
    assert node.exec(f"rm /tmp/.seen; grep -rlaF {CANARY} /home /root /tmp /var/log /run 2>/dev/null || true") == ""
    assert files_with_it(rbee.home, rbee.user_home, rbee.run_dir) == []


def typed(rbee: Rbee, line: str, *args: str, status: int = 0, timeout_s: float = PATIENCE_S) -> str:
    """Run a command at a terminal, and type `line` whenever it asks for a passphrase; what the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(rbee.user_home)
        os.execve(sys.executable, [sys.executable, "-m", "rbee", *args], rbee.environment() | ENVIRONMENT)
    shown, answered = b"", 0
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                break  # the other side is closed
            if not piece:
                break
            shown += piece
            if shown.lower().count(b"passphrase for") > answered:
                answered = shown.lower().count(b"passphrase for")
                os.write(terminal, line.encode() + b"\n")
        else:
            os.kill(pid, 9)
    finally:
        os.close(terminal)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = shown.decode(errors="replace")
    assert ended == status, f"rbee {' '.join(args)} ended with {ended}:\n{text}"
    return text
