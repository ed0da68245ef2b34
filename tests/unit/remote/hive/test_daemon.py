"""The hive as a process: started by many at once, alone in its folder, and gone when it should be."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from rbee_remote.hive import daemon
from rbee_remote.protocol import PROTOCOL
from rbee_remote.system import identity
from rbee_remote.system.layout import Layout
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until
from tests.unit.remote.hive.conftest import HiveFolder, make_gguf

#: Resident MB of a hive without workers; 35 when this was written.
RESIDENT_LIMIT_MB = 60


def test_a_lock_whose_file_was_removed_meanwhile_makes_no_hive(
    folder: HiveFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = folder.layout
    layout.prepare()
    lock = fcntl.flock

    def too_late(descriptor: int, how: int) -> None:
        layout.hive_lock.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with daemon._lock(layout) as held:
        assert not held
    monkeypatch.setattr(fcntl, "flock", lock)
    with daemon._lock(layout) as held, daemon._lock(layout) as again:
        assert (held, again) == (True, False)


def test_it_starts_detached_and_says_who_it_is(folder: HiveFolder) -> None:
    info = folder.start()
    process = psutil.Process(info["pid"])
    assert info["protocol"] == PROTOCOL
    assert info["payload"] == "abc"
    assert info["boot_id"] == identity.boot_id()
    assert info["start_ticks"] == identity.start_ticks(info["pid"])
    assert os.getsid(info["pid"]) != os.getsid(0)
    assert process.cwd() == "/"
    assert process.terminal() is None
    assert folder.ask("GET", "/v1/health") == (200, info)


#: Runs the payload's command line with a hive that is killed before it serves, as often as argument 1 says.
_KILLED = """
import os, signal, sys
from pathlib import Path
from rbee_remote.hive import daemon

notes, serve = Path(sys.argv[1]), daemon._serve

def killed(*arguments, **options):
    with notes.open("a") as file:
        file.write("x")
    if notes.stat().st_size <= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    serve(*arguments, **options)

daemon._serve = killed
try:
    daemon.main(sys.argv[3:])
except Exception as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("deaths", "starts"), [(1, True), (2, False)])
def test_one_that_is_killed_while_it_starts_is_started_once_more(
    folder: HiveFolder, tmp_path: Path, deaths: int, starts: bool
) -> None:
    notes, words = tmp_path / "starts", folder.command("--detach")
    command = [sys.executable, "-c", _KILLED, str(notes), str(deaths), *words[words.index("hive") + 1 :]]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode == 0, notes.read_text()) == (starts, "xx"), done.stderr
    if not starts:
        assert b"the hive did not start" in done.stderr


def test_it_holds_no_descriptor_of_its_starter(folder: HiveFolder) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    done = subprocess.run(
        folder.command("--detach"), capture_output=True, timeout=PATIENCE_S, close_fds=False, check=False
    )
    os.close(writing)
    pid = folder.parse(done)["pid"]
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"", "the end of the pipe comes only when nobody holds it"
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/fd/1").readlink() == folder.layout.hive_log


def test_many_starters_get_one_hive(folder: HiveFolder) -> None:
    with ThreadPoolExecutor(6) as threads:
        infos = list(threads.map(lambda _: folder.start(), range(6)))
    assert len({info["instance"] for info in infos}) == 1
    assert len(folder.processes()) == 1


def test_its_folders_and_sockets_are_private(hive: HiveFolder) -> None:
    layout = hive.layout
    for path in (layout.home, layout.run_dir, layout.logs, layout.models):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (layout.hive_socket, layout.hive_lock, layout.hive_log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_small_one_stays_small(hive: HiveFolder) -> None:
    _, info = hive.ask("GET", "/v1/health")
    process = psutil.Process(info["pid"])
    assert process.memory_info().rss < RESIDENT_LIMIT_MB * 10**6
    loaded = {Path(entry.path).name for entry in process.memory_maps()}
    assert not [name for name in loaded if "multiarray" in name or "llama" in name]


def test_sigterm_ends_it_and_its_socket(hive: HiveFolder) -> None:
    _, info = hive.ask("GET", "/v1/health")
    os.kill(info["pid"], signal.SIGTERM)
    hive.until_gone(info["pid"])
    assert not hive.layout.hive_socket.exists()


def test_after_sigkill_the_next_one_recognises_the_stale_socket(hive: HiveFolder) -> None:
    _, first = hive.ask("GET", "/v1/health")
    os.kill(first["pid"], signal.SIGKILL)
    hive.until_gone(first["pid"])
    assert hive.layout.hive_socket.exists()
    second = hive.start()
    assert second["instance"] != first["instance"]
    assert hive.ask("GET", "/v1/health") == (200, second)


def test_a_file_that_was_replaced_just_before_a_sigkill_goes_with_the_next_hive(
    hive: HiveFolder, tiny_gguf: Path, tmp_path: Path
) -> None:
    hive.register("m", tiny_gguf)
    newer = hive.register("m", make_gguf(tmp_path / "other.gguf", block_count=3))
    _, info = hive.ask("GET", "/v1/health")
    os.kill(info["pid"], signal.SIGKILL)
    hive.until_gone(info["pid"])
    hive.start()

    def left() -> list[str]:
        return sorted(path.name for path in hive.layout.models.glob("*.gguf*"))

    wait_until(lambda: left() == [Path(newer["path"]).name], PATIENCE_S, lambda: f"left: {left()}")


def test_it_ends_when_it_has_had_nothing_to_do(folder: HiveFolder) -> None:
    info = folder.start("--idle-exit=0.5")
    folder.until_gone(info["pid"])
    assert not folder.layout.hive_socket.exists()
    assert "nothing to do" in folder.layout.hive_log.read_text()


def test_it_ends_when_its_socket_is_gone(hive: HiveFolder) -> None:
    _, info = hive.ask("GET", "/v1/health")
    hive.layout.hive_socket.unlink()
    hive.until_gone(info["pid"])
    assert hive.start()["instance"] != info["instance"]


def test_it_leaves_anothers_socket_alone(hive: HiveFolder) -> None:
    _, info = hive.ask("GET", "/v1/health")
    hive.layout.hive_socket.unlink()
    hive.layout.hive_socket.write_text("another's")
    hive.until_gone(info["pid"])
    assert hive.layout.hive_socket.read_text() == "another's"
    hive.layout.hive_socket.unlink()


def test_stop_ends_it_after_the_answer(hive: HiveFolder) -> None:
    status, info = hive.ask("POST", "/v1/stop", {"drain": True})
    assert status == 200
    assert info["draining"] is True
    hive.until_gone(info["pid"])


def test_in_the_foreground_it_is_alone_too(hive: HiveFolder) -> None:
    done = subprocess.run(hive.command(), capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert b"BOOTSTRAP_FAILED" in done.stdout


def start_and_fail(folder: HiveFolder) -> dict[str, Any]:
    done = subprocess.run(folder.command("--detach"), capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1, done
    assert b"Traceback" not in done.stderr
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    return error


def test_a_link_in_place_of_the_run_folder_is_refused(folder: HiveFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.layout.run_dir.symlink_to(tmp_path / "elsewhere")
    error = start_and_fail(folder)
    assert error["code"] == "NODE_UNSUPPORTED"
    assert str(folder.layout.run_dir) in error["message"]
    assert error["hint"]


def test_a_run_folder_in_a_folder_that_others_can_change_is_refused(folder: HiveFolder) -> None:
    folder.layout.run_dir.parent.chmod(0o777)
    assert start_and_fail(folder)["code"] == "NODE_UNSUPPORTED"


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    long = HiveFolder(Layout(home=tmp_path / "home", run_dir=tmp_path / ("x" * 100)))
    error = start_and_fail(long)
    assert error["code"] == "NODE_UNSUPPORTED"
    assert "100 bytes" in error["message"]


def test_one_that_dies_at_its_start_says_why(folder: HiveFolder) -> None:
    folder.layout.prepare()
    folder.layout.audit_log.mkdir()
    error = start_and_fail(folder)
    assert error["code"] == "BOOTSTRAP_FAILED"
    assert any("audit.log" in line for line in error["details"]["last_lines"])


@pytest.mark.model
def test_a_hive_that_is_killed_leaves_workers_that_end(hive: HiveFolder, model_path: Path) -> None:
    hive.register("smollm2:135m", model_path)
    status, worker = hive.ask("POST", "/v1/workers", {"model": "smollm2:135m", "keep_alive_s": -1})
    assert status == 201, worker
    wait_until(lambda: Path(worker["socket"]).exists(), 30, lambda: "the worker has no socket")
    _, info = hive.ask("GET", "/v1/health")
    os.kill(info["pid"], signal.SIGKILL)
    hive.until_gone(info["pid"])
    hive.until_gone(worker["pid"])
    hive.layout.hive_socket.unlink()
