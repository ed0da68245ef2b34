"""`rbee gc` on a command line: silence, lines, one document, statuses, and what it shows for cron and systemd."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.base.errors import ConnectError, RbeeError, RefusedError
from rbee.base.locks import held_at_once
from rbee.cleanup.act import Outcome
from rbee.cleanup.actions import HERE, DropRow, EndProcess, Kept, RemoveFile, StopWorker
from rbee.cleanup.install import schedule
from rbee.cleanup.run import NodeReport
from rbee.cli import main as cli
from rbee.cli.gc_view import document, exit_status, show
from rbee.cli.shell import Options
from rbee.registry import Registry
from rbee.render import make_renderer
from rbee_remote.protocol import ErrorCode
from tests.unit.cleanup.gc_samples import DAY, NODE, WORKER, file, orphan
from tests.unit.cleanup.gc_samples import worker as worker_info

SLOW = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "it took too long to answer")
REFUSED = RefusedError(ErrorCode.AUTH_FAILED, "no key was accepted", details={"reason": "tried\nid_ed25519"})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The keeper's home; the node `local` lives in it, and nothing was ever set up there."""
    for name in ("RBEE_INVENTORY", "RBEE_WHEEL_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RBEE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["gc", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def leave(path: Path, days: float) -> Path:
    """A file that nobody has used for `days`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    past = path.stat().st_mtime - days * DAY
    os.utime(path, (past, past))
    return path


def snapshot(home: Path) -> dict[Path, tuple[int, int, bytes]]:
    """Every file with its inode, its time and what is in it; without those that SQLite needs to read."""
    paths = [path for path in home.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_nothing_to_do_is_said_without_a_word(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run(capsys) == (0, "", "")
    assert not (home / "node").exists()


def test_leftovers_of_the_keeper_are_removed_and_told(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    old = leave(home / "cache/models/incoming-00.gguf.part", 8)
    young = leave(home / "cache/models/incoming-11.gguf.part", 6)
    line = f"here: removed download {old} (1.0 kB): left of an interrupted download, unused for 8d\n"
    assert run(capsys) == (0, line, "")
    assert (old.exists(), young.exists()) == (False, True)
    audited = [json.loads(entry) for entry in (home / "log/audit.log").read_text().splitlines()]
    assert [(entry["action"], entry["node"]) for entry in audited] == [("gc.remove_file", "")]
    assert run(capsys) == (0, "", "")


def test_a_dry_run_explains_and_changes_nothing_not_even_a_home_that_is_not_there(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert run(capsys, "--dry-run") == (0, "", "")
    assert not home.exists()
    leave(home / "log/answer-1.txt", 31)
    with Registry.open(home / "workers.db") as registry:
        registry.upsert_worker("gone", worker_info())
    before = snapshot(home)
    status, out, err = run(capsys, "--dry-run", "--quiet")
    assert (status, err) == (0, "")
    assert out.startswith(f"here: would remove answer {home}/log/answer-1.txt (1.0 kB): ")
    assert snapshot(home) == before
    assert run(capsys, "--node", "local", "--dry-run") == (0, "", "")


def test_one_document_for_programs(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    old = leave(home / "log/answer-1.txt", 31)
    young = leave(home / "log/answer-2.txt", 1)
    status, out, err = run(capsys, "--json")
    told = json.loads(out)
    assert (status, err, told["errors"], told["dry_run"], told["freed_bytes"]) == (0, "", [], False, 1000)
    (action,) = told["actions"]
    assert (action["node"], action["action"], action["path"], action["done"]) == (None, "remove_file", str(old), True)
    assert str(young) in [kept["what"] for kept in told["kept"]]


def test_rows_of_a_node_that_is_not_in_the_inventory_go_when_nobody_goes_by_them(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    with Registry.open(home / "workers.db") as registry:
        registry.upsert_worker("gone", worker_info())
    status, out, err = run(capsys, "-v")
    assert (status, out) == (0, "")
    assert f"gone: kept the registry's row of worker {WORKER}" in err
    with contextlib.closing(sqlite3.connect(home / "workers.db")) as database, database:
        database.execute("update workers set last_seen_at = '2026-01-01T00:00:00.000Z'")
    assert run(capsys) == (
        0,
        f"gone: forgot the registry's row of worker {WORKER}: the inventory has no such node\n",
        "",
    )
    with Registry.open(home / "workers.db") as registry:
        assert registry.rows() == []


def test_the_second_of_two_says_so_and_is_content(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    leave(home / "log/answer-1.txt", 31)
    with held_at_once(home / "cache/locks/gc.lock"):
        status, out, err = run(capsys)
        assert (status, out) == (0, "")
        assert "another `rbee gc` is running" in err
        status, out, _ = run(capsys, "--json")
        assert (status, json.loads(out)["another_is_running"]) == (0, True)
    assert (home / "log/answer-1.txt").exists()


@pytest.mark.parametrize("words", [("--older-than", "never"), ("--older-than", "soon"), ("--node", "nobody")])
def test_wrong_use_is_told_before_anything_is_done(
    capsys: pytest.CaptureFixture[str], home: Path, words: tuple[str, str]
) -> None:
    old = leave(home / "log/answer-1.txt", 31)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert old.exists()


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([None], 0),
        ([SLOW], 3),
        ([REFUSED, REFUSED], 4),
        ([None, SLOW], 10),
        ([SLOW, REFUSED], 10),
        ([], 0),
    ],
)
def test_the_status_says_how_many_failed(errors: list[RbeeError | None], status: int) -> None:
    reports = [NodeReport(f"n{number}", error=error) for number, error in enumerate(errors)]
    assert exit_status([*reports, NodeReport(HERE)]) == status


REPORT = NodeReport(
    NODE,
    [
        Outcome(StopWorker(NODE, "idle for 2h", WORKER, "smollm2:135m", 7200.0), done=True),
        Outcome(DropRow(NODE, "the hive does not know it", WORKER), done=True),
        Outcome(EndProcess(NODE, "its hive is gone", orphan()), note="it has an open request"),
        Outcome(RemoveFile(NODE, "unused\x1b[2J\nfor 8d", file("part", "a\nb")), done=True, bytes=2_000_000),
    ],
    (Kept(NODE, "hive (pid 10)", "it does not answer"),),
    REFUSED,
)


def test_each_action_is_one_line_and_each_failure_another(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, make_renderer(), Options(), dry_run=False)
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        f"gpu1: stopped worker {WORKER} (smollm2:135m): idle for 2h",
        f"gpu1: forgot the registry's row of worker {WORKER}: the hive does not know it",
        "gpu1: removed part /home/bee/.rbee/node/a b (2.0 MB): unused\\x1b[2J for 8d",
    ]
    assert told.err.splitlines() == [
        f"gpu1: left worker {WORKER} (pid 20) alone: it has an open request",
        "error: gpu1: no key was accepted: tried id_ed25519",
    ]


def test_quiet_leaves_failures_and_verbose_explains_what_stays(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, make_renderer(quiet=True), Options(quiet=True), dry_run=False)
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()) == ("", ["error: gpu1: no key was accepted: tried id_ed25519"])
    show(REPORT, make_renderer(verbose=1), Options(verbose=1), dry_run=False)
    assert "gpu1: kept hive (pid 10): it does not answer" in capsys.readouterr().err


def test_the_document_names_what_each_action_was_about() -> None:
    told = document([REPORT], dry_run=False)
    json.dumps(told)
    assert [action["action"] for action in told["actions"]] == [
        "stop_worker",
        "drop_row",
        "end_process",
        "remove_file",
    ]
    assert (told["actions"][0]["worker"], told["actions"][2]["pid"]) == (WORKER, 20)
    assert (told["actions"][2]["done"], told["actions"][2]["note"]) == (False, "it has an open request")
    assert told["freed_bytes"] == 2_000_000
    assert told["errors"] == [
        {"node": NODE, "code": "AUTH_FAILED", "message": "no key was accepted", "details": REFUSED.details, "hint": ""}
    ]


# --- cron and systemd --------------------------------------------------------------------------------------------


def test_the_crontab_line_runs_what_was_typed(tmp_path: Path) -> None:
    home = tmp_path / "a home, 100%"
    program = tmp_path / "my programs" / "rbee"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$RBEE_HOME" "$@"\n')
    program.chmod(0o755)
    line = schedule([str(program), "gc", "--node", "@a b"], {"RBEE_HOME": str(home)}).crontab
    times, command = line.split(None, 5)[:5], line.split(None, 5)[5]
    assert times == ["*/15", "*", "*", "*", "*"]
    assert "%" not in command.replace(r"\%", "")  # cron ends the line there
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace(r"\%", "%")], stdout=subprocess.PIPE, text=True, env={}, check=True
    )
    assert done.stdout.splitlines() == [str(home), "gc", "--node", "@a b"]


def test_the_units_are_units() -> None:
    made = schedule(["/opt/my rbee/rbee", "gc", "--node", "50%$x"], {"RBEE_HOME": '/a "b"'})
    service, timer = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    service.optionxform = timer.optionxform = str  # type: ignore[assignment, method-assign]
    service.read_string(made.service)
    timer.read_string(made.timer)
    assert service["Service"]["ExecStart"] == '"/opt/my rbee/rbee" gc --node 50%%$$x'
    assert service["Service"]["Environment"] == r'"RBEE_HOME=/a \"b\""'
    assert service["Service"]["Type"] == "oneshot"
    assert (timer["Timer"]["OnCalendar"], timer["Install"]["WantedBy"]) == ("*:0/15", "timers.target")


def test_install_shows_this_very_command_and_changes_nothing(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "inventory.toml").write_text('[nodes.gpu1]\nhost = "192.0.2.11"\n')
    status, out, err = run(capsys, "--install", "--older-than", "2h", "--json", "-i", "inventory.toml")
    assert (status, err) == (0, "")
    words = shlex.split(json.loads(out)["crontab"])[5:]
    program = Path(sys.executable).with_name("rbee")
    expected = ["gc", "--inventory", str(tmp_path / "inventory.toml"), "--older-than", "2h"]
    assert words == [f"RBEE_HOME={home}", f"XDG_RUNTIME_DIR={tmp_path}/run", str(program), *expected]
    status, out, _ = run(capsys, "--install")
    assert "rbee-gc.timer" in out
    assert not home.exists()
