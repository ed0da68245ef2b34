"""What a hive finds in its run folder when it starts, and what it survives there and on its disk."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rbee_remote.hive.dead_sockets import remove_dead_sockets
from rbee_remote.system import logs
from tests.hub import Hub, Trouble
from tests.testbed.node import wait_until
from tests.unit.remote.hive.conftest import HiveFolder
from tests.unit.remote.hive.test_app import part_size, pull_request, streaming


def bound(path: Path, *, listening: bool) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    if listening:
        made.listen(1)
    return made


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_only_sockets_that_nobody_listens_on_are_removed(folder: HiveFolder) -> None:
    folder.layout.prepare()
    run_dir = folder.layout.run_dir
    live, full = run_dir / f"worker-{'a' * 16}.sock", run_dir / f"worker-{'c' * 16}.sock"
    dead, staged = run_dir / f"worker-{'b' * 16}.sock", run_dir / f".{dead_pid()}"
    other, file = run_dir / "other.sock", run_dir / f".{dead_pid()}0"
    file.write_text("not a socket")
    sockets = [bound(path, listening=path in (live, full)) for path in (live, full, dead, staged, other)]
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in waiting[:2]:
        client.connect(str(full))  # as many as its queue takes
    remove_dead_sockets(run_dir)
    assert set(run_dir.iterdir()) == {live, full, other, file}
    for one in (*sockets, *waiting):
        one.close()
    for path in (live, full, other, file):
        path.unlink()


def test_a_hive_begins_with_a_tidy_run_folder(folder: HiveFolder) -> None:
    folder.layout.prepare()
    for name in (f".{dead_pid()}", f"worker-{'b' * 16}.sock", "hive.sock"):
        bound(folder.layout.run_dir / name, listening=False).close()
    folder.start()
    assert {path.name for path in folder.layout.run_dir.iterdir()} == {"hive.lock", "hive.sock"}


def test_after_sigkill_in_a_stalled_download_the_next_pull_goes_on_at_once(
    folder: HiveFolder, hub: Hub, tiny_gguf: Path
) -> None:
    content = tiny_gguf.read_bytes() + bytes(1_000_000)
    hub.add("owner/tiny-GGUF", "tiny-Q8_0.gguf", content)
    hub.trouble = Trouble(stall_after=300_000, times=1)
    info = folder.start()
    with streaming(folder, "POST", "/v1/models/pull", pull_request(hub)):
        wait_until(lambda: part_size(folder) > 200_000, 30, lambda: "no part")
        os.kill(info["pid"], signal.SIGKILL)
    wait_until(lambda: not folder.processes(), 10, lambda: f"left: {folder.processes()}")
    folder.start()
    with streaming(folder, "POST", "/v1/models/pull", pull_request(hub)) as response:
        assert b"event: done" in response.read()
    assert hub.content_requests()[-1].headers["range"] == "bytes=300000-"


def test_a_hive_on_a_full_disk_refuses_to_start_anything_and_can_be_stopped(hive: HiveFolder, tiny_gguf: Path) -> None:
    hive.register("m", tiny_gguf)
    _, info = hive.ask("GET", "/v1/health")
    before = resource.prlimit(info["pid"], resource.RLIMIT_FSIZE)
    resource.prlimit(info["pid"], resource.RLIMIT_FSIZE, (0, before[1]))
    status, answer = hive.ask("POST", "/v1/workers", {"model": "m"})
    assert (status, answer["error"]["code"]) == (507, "DISK_FULL")
    assert "audit log" in answer["error"]["message"]
    assert hive.ask("GET", "/v1/workers") == (200, {"workers": []})
    assert hive.ask("POST", "/v1/stop", {"drain": True})[0] == 200
    hive.until_gone(info["pid"])


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/stop", {"patience_s": 0}),
        ("/v1/stop", {"patience_s": 601}),
        ("/v1/stop", {"patience_s": -1.0}),
        ("/v1/stop", {"only_idle_s": -1.0}),
    ],
)
def test_times_that_make_no_sense_are_refused(shared_hive: HiveFolder, target: str, body: dict[str, float]) -> None:
    status, answer = shared_hive.ask("POST", target, body)
    assert (status, answer["error"]["code"]) == (400, "USAGE")
    assert next(iter(body)) in answer["error"]["message"]
    assert shared_hive.ask("GET", "/v1/health")[1]["draining"] is False


def test_a_log_on_a_full_disk_is_cut_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"x" * 1000)
    path.with_name("x.log.1").symlink_to("/dev/full")
    logs.rotate(path, max_bytes=100)
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]
