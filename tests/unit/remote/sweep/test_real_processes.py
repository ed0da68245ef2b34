"""Survey and tidy at work on processes that run from a payload on the disk, and on those that only look like it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rbee_remote.protocol import ProcessSeen, Survey, TidyRequest, decode, encode
from rbee_remote.system.identity import own_tag
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until
from tests.unit.remote.sweep.conftest import NodeFolders, until_running

ID = "0123456789abcdef"

#: Ignores what it is told, and has a child in a session of its own that does the same; writes its child's pid.
_STUBBORN = """\
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    with open(sys.argv[-1], "w") as file:
        file.write(str(os.getpid()) + "\\n")
while True:
    time.sleep(1)
"""


def only(seen: Survey, process: subprocess.Popen[bytes]) -> ProcessSeen:
    (found,) = [one for one in seen.processes if one.pid == process.pid]
    return found


def wait_for(process: subprocess.Popen[bytes]) -> int:
    return process.wait(timeout=PATIENCE_S)


def test_an_orphaned_download_is_seen_and_ended(node: NodeFolders, dead_owner: str) -> None:
    download = node.start("download", f"--target={node.home}/models/x.gguf", dead_owner)
    until_running(download)
    seen = only(node.survey(), download)
    assert (seen.command, seen.owner_lives, seen.answers) == ("download", False, None)
    assert seen.payload == node.payload.stem
    assert seen.rss_mb > 0
    (result,) = node.tidy(dataclasses.replace(node.request(node.survey()), files=())).results
    assert (result.what, result.done) == (f"pid {download.pid}", True)
    assert wait_for(download) in (1, -signal.SIGTERM)


def test_what_a_living_process_owns_is_left_alone(node: NodeFolders) -> None:
    download = node.start("download", f"--target={node.home}/models/x.gguf", own_tag())
    until_running(download)
    (result,) = node.tidy(dataclasses.replace(node.request(node.survey()), files=())).results
    assert "its hive runs" in result.why
    assert download.poll() is None


def test_a_stopped_worker_is_ended_and_its_socket_with_it(node: NodeFolders, dead_owner: str) -> None:
    import socket

    worker = node.start("worker", f"--id={ID}", dead_owner, f"--run-dir={node.run_dir}")
    until_running(worker)
    path = node.run_dir / f"worker-{ID}.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: only(node.survey(), worker).state == "T", PATIENCE_S, lambda: "it does not stop")
    seen = only(node.survey(), worker)
    assert (seen.instance, seen.answers) == (ID, False)
    (result,) = node.tidy(TidyRequest(str(node.home), str(node.run_dir), (seen,), patience_s=5.0)).results
    assert result.done
    assert wait_for(worker) == -signal.SIGTERM
    assert not path.exists()


def test_a_child_in_a_session_of_its_own_ends_with_the_one_it_belongs_to(
    node: NodeFolders, dead_owner: str, tmp_path: Path
) -> None:
    stubborn = node.home / f"payloads/{'5' * 16}.zip"
    stubborn.write_bytes(_zip(_STUBBORN))
    note = tmp_path / "child"
    worker = node.start("worker", f"--id={ID}", dead_owner, str(note), payload=stubborn)
    wait_until(lambda: note.exists() and note.read_text().endswith("\n"), PATIENCE_S, lambda: "no child")
    child = int(note.read_text())
    (seen,) = [one for one in node.survey().processes if one.pid == worker.pid]
    (result,) = node.tidy(TidyRequest(str(node.home), str(node.run_dir), (seen,), patience_s=0.2)).results
    assert result.done
    assert wait_for(worker) == -signal.SIGKILL
    assert not Path(f"/proc/{child}").exists() or b"Z" in Path(f"/proc/{child}/stat").read_bytes().split()[2]


def test_a_process_that_only_mentions_us_and_one_of_another_home_are_no_targets(
    node: NodeFolders, dead_owner: str, tmp_path: Path
) -> None:
    other = NodeFolders(tmp_path / "other", node.run_dir, node.processes)
    other.payload.parent.mkdir(parents=True)
    other.payload.write_bytes(node.payload.read_bytes())
    foreign = other.start("download", "--target=/x", dead_owner)
    until_running(foreign)
    mentions = subprocess.Popen(["sh", "-c", "sleep 60; true", "-I", node.payload, "worker", f"--id={ID}", dead_owner])
    try:
        assert node.survey().processes == ()
        seen = only(other.survey(), foreign)
        claimed = dataclasses.replace(seen, pid=mentions.pid)
        ticks = int(Path(f"/proc/{mentions.pid}/stat").read_text().rpartition(")")[2].split()[19])
        request = TidyRequest(
            str(node.home), str(node.run_dir), (seen, dataclasses.replace(claimed, start_ticks=ticks))
        )
        results = node.tidy(request).results
        assert [result.why for result in results] == ["it is not a process of rbee for this home and user"] * 2
        assert foreign.poll() is None
        assert mentions.poll() is None
    finally:
        subprocess.run(["pkill", "-P", str(mentions.pid)], check=False)
        mentions.kill()
        mentions.wait()


def test_a_home_that_is_a_link_is_the_same_home(node: NodeFolders, dead_owner: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(node.home)
    download = node.start("download", "--target=/x", dead_owner)
    until_running(download)
    by_link = NodeFolders(link, node.run_dir)
    assert only(by_link.survey(), download).command == "download"
    payload = next(seen for seen in by_link.survey().files if seen.kind == "payload")
    assert (payload.path, payload.user) == (f"{link}/payloads/{node.payload.name}", f"download {download.pid}")


@pytest.mark.parametrize("python", [os.path.realpath(sys.executable), sys.executable])
def test_the_commands_run_from_the_zip_with_a_python_that_has_nothing_else(node: NodeFolders, python: str) -> None:
    command = [python, "-I", str(node.payload)]
    folders = ["--home", str(node.home), "--run-dir", str(node.run_dir)]
    done = subprocess.run([*command, "survey", *folders], capture_output=True, timeout=PATIENCE_S, check=True)
    seen = decode(Survey, json.loads(done.stdout))
    assert [one.kind for one in seen.files] == ["payload"]
    request = json.dumps(encode(node.request(seen))).encode()
    done = subprocess.run([*command, "tidy"], input=request, capture_output=True, timeout=PATIENCE_S, check=True)
    assert b'"done": true' in done.stdout
    assert not node.payload.exists()


def _zip(main: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", main)
    return buffer.getvalue()
