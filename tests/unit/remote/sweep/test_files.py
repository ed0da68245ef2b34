"""What lies in a node's folders: what is listed, what never is, and what is removed of it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rbee_remote.protocol import FileSeen, Survey, TidyResult
from rbee_remote.sweep import files
from tests.doubles.system import ScriptedSystem
from tests.patience import PATIENCE_S
from tests.unit.remote.sweep.conftest import NodeFolders, age

DAY_S = 86400.0
ID = "0123456789abcdef"
KEEPER = "f" * 16
UPLOAD = f"part-{KEEPER}-0a1b2c3d"


def listed(node: NodeFolders) -> dict[str, FileSeen]:
    """By their place below home."""
    return {os.path.relpath(seen.path, node.home): seen for seen in node.survey().files}


def remove(node: NodeFolders, *seen: FileSeen) -> list[TidyResult]:
    request = dataclasses.replace(node.request(node.survey()), processes=(), files=seen)
    return list(node.tidy(request).results)


def make_runtime(node: NodeFolders, key: str = "cpu-3.11", *, idle_s: float = 0.0) -> Path:
    config = node.make(f"runtimes/{key}/pyvenv.cfg")
    node.make(f"runtimes/{key}/lib/python3.11/site-packages/a/b.py", b"12345")
    (config.parent / "bin").mkdir()
    (config.parent / "bin/python").symlink_to("/usr/bin/python3")
    age(config.parent, idle_s)
    return config.parent


# --- what is listed ---------------------------------------------------------------------------------------------------


def test_each_kind_is_listed_with_its_size_and_age(node: NodeFolders) -> None:
    node.make(f"payloads/{ID}.zip", b"123", idle_s=8 * DAY_S)
    make_runtime(node, idle_s=9 * DAY_S)
    node.make("runtimes/uv-0.9.1")
    node.make("runtimes/wheels/0011223344556677/numpy-2.whl", b"1234")
    node.make("runtimes/.staging-00ff/venv/x", b"12")
    node.make("runtimes/.removed-00ff/venv/x")
    node.make(f"runtimes/wheels/0011223344556677/anyio.whl.{UPLOAD}")
    node.make(f"runtimes/uv-0.9.1.{UPLOAD}-12-345")
    node.make(f"models/{'0' * 64}.gguf.part", b"1" * 10)
    node.make(f"models/{'0' * 64}.gguf.part.json")
    node.make(f"models/{'1' * 64}.gguf.{UPLOAD}")
    node.make(f"models/incoming-{'2' * 32}.gguf")
    node.make(f"models/incoming-{'2' * 32}-00001-of-00002.gguf")
    node.make(f"models/incoming-{'2' * 32}-00002-of-00002.gguf.part")
    node.make(f"models/.{'3' * 32}.json.abcd")
    node.make(f"log/worker-{ID}.log", idle_s=DAY_S)
    node.make(f"log/worker-{ID}.log.1")
    found = listed(node)
    assert {path: seen.kind for path, seen in found.items()} == {
        f"payloads/{node.payload.name}": "payload",
        f"payloads/{ID}.zip": "payload",
        "runtimes/cpu-3.11": "runtime",
        "runtimes/uv-0.9.1": "uv",
        "runtimes/wheels": "wheels",
        "runtimes/.staging-00ff": "staging",
        "runtimes/.removed-00ff": "staging",
        f"runtimes/wheels/0011223344556677/anyio.whl.{UPLOAD}": "part",
        f"runtimes/uv-0.9.1.{UPLOAD}-12-345": "part",
        f"models/{'0' * 64}.gguf.part": "download",
        f"models/{'0' * 64}.gguf.part.json": "download",
        f"models/{'1' * 64}.gguf.{UPLOAD}": "part",
        f"models/incoming-{'2' * 32}.gguf": "download",
        f"models/incoming-{'2' * 32}-00001-of-00002.gguf": "download",
        f"models/incoming-{'2' * 32}-00002-of-00002.gguf.part": "download",
        f"models/.{'3' * 32}.json.abcd": "part",
        f"log/worker-{ID}.log": "log",
        f"log/worker-{ID}.log.1": "log",
    }
    assert found[f"payloads/{ID}.zip"].bytes == 3
    assert found["runtimes/wheels"].bytes == 5
    assert found["runtimes/cpu-3.11"].bytes >= 6
    assert found[f"payloads/{ID}.zip"].idle_s == pytest.approx(8 * DAY_S, abs=60)
    assert found["runtimes/cpu-3.11"].idle_s == pytest.approx(9 * DAY_S, abs=60)
    assert found["runtimes/wheels"].idle_s < 60
    assert all(seen.user == "" for seen in found.values())


def test_what_rbee_keeps_and_what_is_the_users_is_never_listed(node: NodeFolders) -> None:
    for path in (
        f"models/{'0' * 32}.json", "models/mine.gguf", "models/notes.part", "log/hive.log",
        "log/audit.log", "log/worker-mine.log", "runtimes/python/.cache/x", "runtimes/mine/file",
        "payloads/mine.zip", f"payloads/{ID}.zip.bak", "thesis.tex", "notes.part-1", f"deep/er/x.{UPLOAD}",
    ):  # fmt: skip
        node.make(path, idle_s=99 * DAY_S)
    assert set(listed(node)) == {f"payloads/{node.payload.name}"}


def test_a_python_goes_when_no_runtime_is_made_from_it(node: NodeFolders) -> None:
    unused, used, becoming = (
        node.make(f"runtimes/python/{name}/bin/python3.12", b"1", idle_s=9 * DAY_S)
        for name in ("cpython-3.12", "rbee-3.11-00ff", "rbee-3.12-00ff")
    )
    runtime, staged = make_runtime(node), node.make("runtimes/.staging-00ff/venv/bin/x").parent
    (runtime / "bin/python").unlink()
    (runtime / "bin/python").symlink_to(used)
    (staged / "python").symlink_to(becoming)
    pythons = {path: seen for path, seen in listed(node).items() if path.startswith("runtimes/python")}
    assert {path: seen.kind for path, seen in pythons.items()} == {"runtimes/python/cpython-3.12": "python"}
    assert [result.done for result in remove(node, *pythons.values())] == [True]
    assert not unused.exists()
    assert used.exists()


@pytest.mark.parametrize("part", ["", "-00001-of-00003", "-00003-of-00003"])
def test_a_download_that_the_catalog_names_is_kept(node: NodeFolders, part: str) -> None:
    name, first = f"incoming-{'2' * 32}{part}.gguf", f"incoming-{'2' * 32}{part.replace('-00003-', '-00001-')}.gguf"
    node.make(f"models/{name}")
    record = node.make(f"models/{'2' * 32}.json", json.dumps({"path": first}).encode())
    assert f"models/{name}" not in listed(node)
    record.write_text("[]")
    assert f"models/{name}" in listed(node)


def test_a_model_goes_that_no_record_names(node: NodeFolders) -> None:
    kept, gone = "4" * 64, "5" * 64
    one = node.make(f"models/{'1' * 32}.json", json.dumps({"path": f"{kept}.gguf"}).encode())
    node.make(f"models/{'2' * 32}.json", json.dumps({"path": f"{kept}-00001-of-00002.gguf"}).encode())
    for name in ("", "-00001-of-00002", "-00002-of-00002"):
        for sha256 in (kept, gone):
            node.make(f"models/{sha256}{name}.gguf", b"123", idle_s=99 * DAY_S)
    node.make(f"models/{gone}.gguf.unneeded")
    node.make("models/thesis.gguf")
    found = [seen for seen in listed(node).values() if "/models/" in seen.path]
    names = {Path(seen.path).name for seen in found}
    assert names == {
        f"{gone}{name}" for name in (".gguf", "-00001-of-00002.gguf", "-00002-of-00002.gguf", ".gguf.unneeded")
    }
    assert {seen.kind for seen in found} == {"model"}
    assert all(seen.idle_s < 60 for seen in found), "it came here a moment ago, whenever it was written"
    one.write_text("{")
    assert [seen for seen in listed(node).values() if "/models/" in seen.path] == [], "the record may name any of them"
    one.unlink()
    assert all(result.done for result in remove(node, *found))
    assert len(list((node.home / "models").glob(f"{gone}*"))) == 0


def test_a_model_that_a_hive_keeps_for_its_workers_is_as_old_as_its_note(
    node: NodeFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another machine with the same home, say: its workers are not seen here."""
    split, whole = [f"{'4' * 64}-0000{number}-of-00002.gguf" for number in (1, 2)], f"{'5' * 64}.gguf"
    for name in (*split, whole):
        node.make(f"models/{name}")
    in_thirty_days = time.time() + 30 * DAY_S  # their ctime cannot be set
    monkeypatch.setattr(time, "time", lambda: in_thirty_days)
    node.make(f"models/{split[0]}.unneeded", idle_s=-29 * DAY_S)
    ages = {Path(seen.path).name: round(seen.idle_s / DAY_S) for seen in listed(node).values() if seen.kind == "model"}
    assert ages == {split[0]: 1, split[1]: 1, f"{split[0]}.unneeded": 1, whole: 30}


def test_where_records_cannot_be_read_no_model_is_listed(node: NodeFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    node.make(f"models/{'5' * 64}.gguf")
    assert f"models/{'5' * 64}.gguf" in listed(node)
    real, times = os.scandir, iter([OSError(errno.EIO, "a disk's error")])

    def once(folder: int) -> object:
        is_models = Path(f"/proc/self/fd/{folder}").readlink().name == "models"
        if is_models and (error := next(times, None)):
            raise error
        return real(folder)

    monkeypatch.setattr(os, "scandir", once)
    assert f"models/{'5' * 64}.gguf" not in listed(node)
    assert f"models/{'5' * 64}.gguf" in listed(node)


def test_links_are_not_followed(node: NodeFolders, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "cpu").mkdir(parents=True)
    (elsewhere / "cpu/pyvenv.cfg").touch()
    (elsewhere / f"{ID}.zip").touch()
    (elsewhere / f"worker-{ID}.log").touch()
    (node.home / "runtimes").symlink_to(elsewhere)
    (node.home / "log").mkdir()
    (node.home / f"log/worker-{ID}.log").symlink_to(elsewhere / f"worker-{ID}.log")
    (node.home / f"payloads/{ID}.zip").symlink_to(elsewhere / f"{ID}.zip")
    assert set(listed(node)) == {f"payloads/{node.payload.name}"}


def test_odd_names_change_nothing(node: NodeFolders) -> None:
    for name in (b"\xff\xfe", b"a\nb", b"..x", b"\x1b[31m", f"x\n.{UPLOAD}".encode()):
        Path(os.fsdecode(os.fsencode(node.home / "log") + b"/" + name)).parent.mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(node.home / "log") + b"/" + name)).touch()
        Path(os.fsdecode(os.fsencode(node.home / "payloads") + b"/" + name)).touch()
    assert set(listed(node)) == {f"payloads/{node.payload.name}"}


def test_a_home_whose_own_name_is_odd(node: NodeFolders) -> None:
    odd = Path(os.fsdecode(os.fsencode(node.home) + b" \xff\n'$(x)"))
    node.home.rename(odd)
    node.home = odd
    seen = node.make(f"log/worker-{ID}.log")
    travelled = Survey(**json.loads(json.dumps(dataclasses.asdict(node.survey()))))
    found = [FileSeen(**entry) for entry in travelled.files]  # type: ignore[arg-type]  # as JSON has it
    log = next(entry for entry in found if entry.kind == "log")
    assert remove(node, log) == [TidyResult(str(seen), done=True, bytes=1)]
    assert not seen.exists()


def test_a_clock_that_was_set_back_makes_nothing_older_than_now(node: NodeFolders) -> None:
    node.make("runtimes/.staging-00ff/x", idle_s=-DAY_S)
    node.make(f"payloads/{ID}.zip", idle_s=-DAY_S)
    assert all(seen.idle_s >= 0 for seen in listed(node).values())
    machine = ScriptedSystem(home=str(node.home), run_dir=str(node.run_dir))
    machine.jump(-50 * 365 * DAY_S)
    assert {seen.idle_s for seen in files.see(machine, machine.home, machine.run_dir, [])} == {0.0}


def test_a_huge_folder_is_walked_only_so_far(node: NodeFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 50)
    monkeypatch.setattr(files, "MAX_COUNTED", 20)
    for number in range(80):
        node.make(f"log/worker-{number:016x}.log")
        node.make(f"runtimes/.staging-0/{number}", b"12")
    found = listed(node)
    assert len([seen for seen in found.values() if seen.kind == "log"]) == 50
    assert found["runtimes/.staging-0"].bytes == 40


def test_a_home_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    missing = NodeFolders(tmp_path / "nothing", tmp_path / "neither")
    assert missing.survey().files == ()


# --- use --------------------------------------------------------------------------------------------------------------


@contextmanager
def sleeping(*words: str | Path, cwd: Path | None = None) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60", *words], cwd=cwd) if not words else subprocess.Popen(words, cwd=cwd)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_files_that_a_process_names_or_has_open_are_in_use(node: NodeFolders) -> None:
    runtime = make_runtime(node)
    make_runtime(node, "cpu-3.12")
    staging = node.make("runtimes/.staging-00ff/x")
    part = node.make(f"models/{'0' * 64}.gguf.part")
    node.make(f"models/{'0' * 64}.gguf.part.json")
    script = f"while :; do sleep 60; done; {runtime}/bin/python"
    with part.open("rb"), sleeping(cwd=staging.parent) as inside, sleeping("bash", "-c", script) as pid:
        # This test's own process has the part open, and is not the one that surveys there.
        found = {path: seen["user"] for path, seen in survey_by_another(node).items()}
    assert found["runtimes/cpu-3.11"] == f"pid {pid}"
    assert found["runtimes/cpu-3.12"] == ""
    assert found["runtimes/.staging-00ff"] == f"pid {inside}"
    assert found[f"models/{'0' * 64}.gguf.part"] == f"pid {os.getpid()}"
    assert found[f"models/{'0' * 64}.gguf.part.json"] == ""


def survey_by_another(node: NodeFolders) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-I", str(node.payload), "survey", "--home", str(node.home)]
    done = subprocess.run(
        [*command, "--run-dir", str(node.run_dir)], capture_output=True, timeout=PATIENCE_S, check=True
    )
    return {os.path.relpath(seen["path"], node.home): seen for seen in json.loads(done.stdout)["files"]}


def test_sockets_nobody_listens_at_are_told_from_those_that_serve(node: NodeFolders) -> None:
    names = ("hive.sock", f"worker-{ID}.sock", ".123", "mine.sock")
    for name in names:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(node.run_dir / name))
    (node.run_dir / "hive.lock").touch()
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(node.run_dir / f"worker-{'1' * 16}.sock"))
        alive.listen()
        found = {Path(seen.path).name: seen for seen in node.survey().files if seen.kind == "socket"}
        results = remove(node, *found.values())
    assert {name: bool(seen.user) for name, seen in found.items()} == {
        "hive.sock": False, f"worker-{ID}.sock": False, ".123": False, f"worker-{'1' * 16}.sock": True,
    }  # fmt: skip
    assert {Path(result.what).name for result in results if not result.done} == {f"worker-{'1' * 16}.sock"}
    assert sorted(path.name for path in node.run_dir.iterdir()) == sorted(
        ["hive.lock", "mine.sock", f"worker-{'1' * 16}.sock"]
    )


# --- removal ----------------------------------------------------------------------------------------------------------


def test_files_and_folders_go_with_what_is_in_them_and_links_in_them_lead_nowhere(
    node: NodeFolders, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").touch()
    runtime = make_runtime(node)
    (runtime / "lib64").symlink_to(precious)
    (runtime / "thesis").symlink_to(precious / "thesis")
    log = node.make(f"log/worker-{ID}.log", b"123")
    found = listed(node)
    results = remove(node, found["runtimes/cpu-3.11"], found[f"log/worker-{ID}.log"])
    assert [(result.done, result.why) for result in results] == [(True, ""), (True, "")]
    assert results[1].bytes == 3
    assert not log.exists()
    assert list((node.home / "runtimes").iterdir()) == []
    assert (precious / "thesis").exists()


def test_a_link_that_was_planted_between_survey_and_tidy_is_left_alone(node: NodeFolders, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "cpu-3.11").mkdir(parents=True)
    (precious / "cpu-3.11/pyvenv.cfg").touch()
    (precious / f"{ID}.zip").touch()
    make_runtime(node)
    payload = node.make(f"payloads/{ID}.zip")
    found = listed(node)
    (node.home / "runtimes").rename(tmp_path / "moved")
    (node.home / "runtimes").symlink_to(precious)
    payload.unlink()
    payload.symlink_to(precious / f"{ID}.zip")
    results = remove(node, found["runtimes/cpu-3.11"], found[f"payloads/{ID}.zip"])
    assert [result.done for result in results] == [False, False]
    assert sorted(path.name for path in precious.iterdir()) == sorted(["cpu-3.11", f"{ID}.zip"])
    assert payload.is_symlink()


def test_what_was_replaced_written_or_used_since_is_left_alone(node: NodeFolders) -> None:
    log, payload = node.make(f"log/worker-{ID}.log"), node.make(f"payloads/{ID}.zip", idle_s=9 * DAY_S)
    runtime, part = make_runtime(node, idle_s=9 * DAY_S), node.make(f"models/{'1' * 64}.gguf.{UPLOAD}")
    found = [seen for path, seen in listed(node).items() if not path.endswith(node.payload.name)]
    time.sleep(0.02)  # longer than the file system's clock stands still
    log.unlink()
    log.touch()
    part.write_bytes(b"more")
    os.utime(payload)
    os.utime(runtime)
    results = remove(node, *found)
    assert {result.why for result in results} == {"it was used or changed since"}
    assert all(path.exists() for path in (log, payload, runtime, part))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("log", "log/../thesis.tex"),
        ("log", "log/hive.log"),
        ("runtime", "runtimes"),
        ("runtime", ""),
        ("payload", "../elsewhere"),
        ("download", f"models/{'0' * 64}.gguf"),
    ],
)
def test_a_keeper_can_have_nothing_else_removed(node: NodeFolders, kind: str, path: str) -> None:
    for name in ("thesis.tex", "log/hive.log", f"models/{'0' * 64}.gguf", "runtimes/cpu/pyvenv.cfg", "../elsewhere"):
        node.make(name)
    target = f"{node.home}/{path}"
    identity = files.identity_of(os.lstat(target))
    (result,) = remove(node, FileSeen(kind, target, 1, 99 * DAY_S, identity))
    assert not result.done
    assert Path(target).exists()


def test_a_file_that_came_into_use_since_is_left_alone(node: NodeFolders) -> None:
    staging = node.make("runtimes/.staging-00ff/x").parent
    (seen,) = [seen for seen in node.survey().files if seen.kind == "staging"]
    with sleeping(cwd=staging) as pid:
        (result,) = remove(node, seen)
    assert result.why == f"it is in use: pid {pid}"
    assert staging.exists()


def test_a_folder_that_cannot_be_removed_is_no_runtime_any_more_and_goes_the_next_time(node: NodeFolders) -> None:
    runtime = make_runtime(node)
    (seen,) = [seen for seen in node.survey().files if seen.kind == "runtime"]
    immutable = subprocess.run(["chattr", "+i", runtime / "pyvenv.cfg"], capture_output=True, check=False)
    if immutable.returncode:
        pytest.skip("this file system knows no immutable files")
    try:
        (result,) = remove(node, seen)
    finally:
        subprocess.run(["find", node.home, "-name", "pyvenv.cfg", "-exec", "chattr", "-i", "{}", "+"], check=True)
    assert not result.done
    assert "cannot be removed" in result.why
    (left,) = [seen for seen in node.survey().files if seen.kind == "staging"]
    assert Path(left.path).name.startswith(".removed-")
    assert remove(node, left)[0].done
    assert list((node.home / "runtimes").iterdir()) == []


def test_a_folder_that_cannot_be_renamed_loses_its_programs_first(
    node: NodeFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """overlayfs answers so for folders of a container's image."""
    runtime = make_runtime(node)
    (seen,) = [seen for seen in node.survey().files if seen.kind == "runtime"]

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "rmdir", refuse)  # which breaks the removal off as soon as there is an empty folder
    assert not remove(node, seen)[0].done
    assert not (runtime / "bin" / "python").exists()
    assert (runtime / "pyvenv.cfg").exists()
    monkeypatch.undo()
    monkeypatch.setattr(os, "rename", refuse)
    (again,) = [seen for seen in node.survey().files if seen.path == str(runtime)]
    assert remove(node, again)[0].done
    assert not runtime.exists()
