"""The `rbee` command as a user runs it: a process of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.testbed.node import wait_until

TIMEOUT_S = 240.0
#: What must not reach the command under test from whoever runs the tests.
PRIVATE = ("RBEE_", "HF_", "SSH_", "XDG_", "PYTEST_")


@dataclass(frozen=True, slots=True)
class Result:
    stdout: str
    stderr: str
    status: int

    def lines(self) -> list[Any]:
        """stdout of a `--json` command that prints one object a line."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    def json(self) -> Any:
        """stdout of a `--json` command that prints one document."""
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class Rbee:
    """A keeper: calling it runs `rbee ARGUMENTS…`. home: its RBEE_HOME. env: what else its commands see.

    Its user's HOME is a folder of its own, so that what rbee writes beside RBEE_HOME shows.
    """

    home: Path
    run_dir: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(
        self,
        *args: str,
        stdin: str = "",
        status: int | None = 0,
        timeout: float = TIMEOUT_S,
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run to the end. status: the exit status that is expected, None for any."""
        done = subprocess.run(
            self._command(args),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment() | (env or {}),
            cwd=self.user_home,
            check=False,
        )
        result = Result(done.stdout, done.stderr, done.returncode)
        if status is not None:
            assert result.status == status, (
                f"rbee {' '.join(args)} ended with {result.status}:\n{done.stdout}{done.stderr}"
            )
        assert "Traceback" not in result.stderr, result.stderr
        return result

    @contextmanager
    def start(self, *args: str, env: dict[str, str] | None = None) -> Iterator[Running]:
        """Start without waiting; killed, if it still runs, when the context ends."""
        process = subprocess.Popen(
            self._command(args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment() | (env or {}),
            cwd=self.user_home,
            start_new_session=True,  # Ctrl-C goes to the whole group, as a terminal sends it
        )
        running = Running(process)
        try:
            yield running
        finally:
            running.close()

    @property
    def user_home(self) -> Path:
        return self.home.parent / "home"

    @property
    def inventory(self) -> Path:
        return self.home / "inventory.toml"

    def environment(self) -> dict[str, str]:
        """The caller's environment without its secrets and settings, HOME and runtime folder our own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        real_home = Path.home()
        for config in (real_home / ".pip/pip.conf", real_home / ".config/pip/pip.conf"):
            if config.is_file():
                kept.setdefault("PIP_CONFIG_FILE", str(config))
        kept.setdefault("PIP_CACHE_DIR", str(real_home / ".cache/pip"))
        kept.setdefault("RUSTUP_HOME", str(real_home / ".rustup"))  # pip runs `rustc --version`; rustup writes there
        own = {"HOME": str(self.user_home), "RBEE_HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.run_dir)}
        # Workers of two threads, on processors that other tests use as well, spend half of the time spinning.
        calm = {"RBEE_LINK": "off", "GOMP_SPINCOUNT": "300"}
        return calm | kept | own | self.env

    def node_processes(self) -> list[psutil.Process]:
        """Processes of the `local` node of this keeper: whatever has our home in its command line."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if process.pid != os.getpid() and any(str(self.home) in word for word in words):
                found.append(process)
        return found

    def sockets(self) -> list[Path]:
        return [path for path in self.run_dir.rglob("*") if path.is_socket()]

    def local_workers(self) -> list[psutil.Process]:
        return [process for process in self.node_processes() if "worker" in process.info["cmdline"]]

    def _command(self, args: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "rbee", *args]


class Running:
    """A command under way, whose output arrives in timed pieces."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        #: (seconds on the monotonic clock, bytes) in the order of arrival.
        self.stdout: list[tuple[float, bytes]] = []
        self.stderr: list[tuple[float, bytes]] = []
        self._arrived: queue.Queue[None] = queue.Queue()
        pairs = ((process.stdout, self.stdout), (process.stderr, self.stderr))
        self._readers = [threading.Thread(target=self._read, args=pair) for pair in pairs]
        for reader in self._readers:
            reader.start()

    def wait_for(self, text: str, *, stream: str = "stderr", timeout_s: float = TIMEOUT_S) -> None:
        """Until `text` has been printed; AssertionError when the command ends, or the time is over, before that."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text(stream):
            ended = self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
            assert not ended, f"ended with {self.process.returncode} before {text!r}:\n{self.text('stderr')}"
            assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s:\n{self.text('stderr')}"
            self._wait_for_output()

    def gateway(self) -> str:
        """Where `rbee serve`, which this is, says that it listens: it was given port 0, which nobody else can take."""
        self.wait_for("http://", stream="stdout")
        pattern = re.compile(r"http://127\.0\.0\.1:\d+(?=\D)")
        wait_until(lambda: pattern.search(self.text("stdout")), TIMEOUT_S, lambda: self.text("stdout"))
        found = pattern.search(self.text("stdout"))
        assert found
        return found[0]

    def wait_for_pieces(self, count: int, *, timeout_s: float = TIMEOUT_S) -> None:
        """Until stdout arrived in at least `count` pieces."""
        wait_until(
            lambda: len(self.stdout) >= count, timeout_s, lambda: f"stdout: {self.stdout}\n{self.text('stderr')}"
        )

    def interrupt(self) -> float:
        """Ctrl-C; the time at which it was sent."""
        os.killpg(self.process.pid, signal.SIGINT)
        return time.monotonic()

    def kill(self) -> None:
        self.process.kill()

    def finish(self, timeout_s: float = TIMEOUT_S) -> Result:
        """Wait for the end."""
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return Result(self.text("stdout"), self.text("stderr"), status)

    def text(self, stream: str) -> str:
        pieces = self.stdout if stream == "stdout" else self.stderr
        return b"".join(piece for _, piece in list(pieces)).decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _wait_for_output(self) -> None:
        try:
            self._arrived.get(timeout=0.1)
        except queue.Empty:
            return

    def _read(self, stream: Any, pieces: list[tuple[float, bytes]]) -> None:
        while piece := os.read(stream.fileno(), 65536):
            pieces.append((time.monotonic(), piece))
            self._arrived.put(None)
