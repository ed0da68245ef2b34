"""A hive as a process of its own, a supervisor with scripted workers, and models small enough to make in a moment."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rbee_remote.system import unix_http
from rbee_remote.system.command import payload_command
from rbee_remote.system.layout import Layout
from tests.hub import Hub, running_hub
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until


class HiveFolder:
    """A home and a run folder, and commands of the payload in them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def command(self, *arguments: str) -> list[str]:
        folders = ["--home", str(self.layout.home), "--run-dir", str(self.layout.run_dir)]
        return payload_command("hive", *folders, "--payload", "abc", *arguments)

    def start(self, *arguments: str) -> dict[str, Any]:
        """HiveInfo, as the starter prints it."""
        command = self.command("--detach", *arguments)
        return self.parse(subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False))

    @staticmethod
    def parse(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
        assert done.returncode == 0, (done.stdout, done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def ask(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        return unix_http.request(self.layout.hive_socket, method, target, body=body, timeout=PATIENCE_S)

    def processes(self) -> list[psutil.Process]:
        """Every process that has this folder in its command line, workers among them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.layout.home) in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def until_gone(self, pid: int) -> None:
        wait_until(lambda: not psutil.pid_exists(pid), PATIENCE_S, lambda: f"process {pid} still runs")

    def register(self, model: str, file: Path) -> dict[str, Any]:
        shutil.copy(file, self.layout.models / file.name)
        status, info = self.ask("POST", "/v1/models", {"model": model, "path": file.name})
        assert status == 201, info
        answer: dict[str, Any] = info
        return answer


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[HiveFolder]:
    """Whatever still runs or listens at the end is a leak."""
    with hive_folder(tmp_path) as made:
        yield made


@pytest.fixture
def hive(folder: HiveFolder) -> HiveFolder:
    """A hive that runs, detached."""
    folder.start()
    return folder


@pytest.fixture(scope="module")
def shared_hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiveFolder]:
    """A hive for tests that change nothing."""
    with hive_folder(tmp_path_factory.mktemp("shared")) as made:
        made.start()
        yield made


@contextmanager
def hive_folder(base: Path) -> Iterator[HiveFolder]:
    run_dir = Path(tempfile.mkdtemp(prefix="rbee-hive-", dir="/tmp"))  # short, for the sockets
    hive = HiveFolder(Layout(home=base / "home", run_dir=run_dir / "run"))
    try:
        yield hive
        with suppress(OSError):
            hive.ask("POST", "/v1/stop", {"drain": False})
        wait_until(lambda: not hive.processes(), PATIENCE_S, lambda: f"left: {hive.processes()}")
        assert list(run_dir.rglob("*.sock")) == []
    finally:
        for process in hive.processes():
            process.kill()
        shutil.rmtree(run_dir)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def tls_hub() -> Iterator[Hub]:
    with running_hub(tls=True) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file that is whole and small, and no model that could be run."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def make_gguf(path: Path, *, block_count: int = 2) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(block_count)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(256)
    writer.add_file_type(7)
    writer.add_tensor("token_embd.weight", np.ones((256, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
