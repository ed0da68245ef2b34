"""The keeper's record: whatever happens to the file, it is found; whatever happens to its writers, nothing is lost."""

from __future__ import annotations

import asyncio
import fcntl
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbee import audit
from rbee.audit.check import Verdict, last_entries, verify_keeper
from rbee.base import who
from rbee.base.errors import ConnectError, UsageError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.render import OutputClosed
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.audit import AuditHead, Verifier, digest_of, make_line, pack_head, unpack_head, verify
from rbee_remote.protocol.audit_log import AuditLog
from tests.unit.registry.test_registry import run


@pytest.fixture
def keeper(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home")


def fail(event: Event) -> None:
    raise AssertionError(event)


def write(keeper: Settings, count: int) -> list[bytes]:
    """Record some actions; the lines of the file, without their newlines."""
    for number in range(count):
        audit.record(keeper, "worker.stop", emit=fail, node="gpu1", worker=f"{number:016x}")
    return log(keeper).read_bytes().splitlines()


def log(keeper: Settings) -> Path:
    return keeper.log / "audit.log"


def put(keeper: Settings, lines: list[bytes]) -> None:
    log(keeper).write_bytes(b"".join(line + b"\n" for line in lines))


def test_a_line_says_who_did_what_where_and_how_it_ended(keeper: Settings) -> None:
    audit.record(keeper, "infer", emit=fail, node="gpu1", model="m", tokens=3, finish="stop", left_out=None)
    (entry,) = last_entries(keeper, 10, None)
    assert entry["time"].endswith("Z")
    assert entry["keeper"] == (keeper.home / "keeper-id").read_text().strip()
    assert (entry["user"], entry["host"]) == (who.user(), who.host())
    assert (entry["action"], entry["node"], entry["outcome"]) == ("infer", "gpu1", "ok")
    assert (entry["model"], entry["tokens"], entry["finish"]) == ("m", 3, "stop")
    assert "left_out" not in entry
    for path in (log(keeper), keeper.log / "audit.head"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectError(ErrorCode.CONNECTION_LOST, "lost"), "CONNECTION_LOST"),
        (UsageError("wrong"), "USAGE"),
        (asyncio.CancelledError(), "REQUEST_CANCELED"),
        (KeyboardInterrupt(), "REQUEST_CANCELED"),
        (OutputClosed(), "REQUEST_CANCELED"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
)
def test_what_fails_is_recorded_too_and_fails_as_before(keeper: Settings, error: BaseException, outcome: str) -> None:
    def work() -> None:
        with audit.recorded(keeper, "infer", emit=fail, model="m") as details:
            details["node"] = "gpu2"
            raise error

    with pytest.raises(type(error)):
        work()
    (entry,) = last_entries(keeper, 10, None)
    assert (entry["outcome"], entry["node"], entry["model"]) == (outcome, "gpu2", "m")


def test_what_is_endless_has_an_end_and_stays_on_its_line(keeper: Settings) -> None:
    audit.record(keeper, "gc", emit=fail, node="x" * 10**6, why="a\nb\x1b[2J" * 10**5, actions=["y" * 100] * 10**4)
    (line,) = log(keeper).read_bytes().splitlines()
    assert len(line) < 5000
    assert verify_keeper(keeper).breaks == ()


def test_a_sound_log_is_whole(keeper: Settings) -> None:
    assert verify_keeper(keeper) == Verdict((), 0, ())
    write(keeper, 5)
    assert verify_keeper(keeper) == Verdict((str(log(keeper)),), 5, ())


EDITS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "first changed": (lambda lines: [lines[0].replace(b"stop", b"show"), *lines[1:]], 2),
    "middle changed": (lambda lines: [*lines[:2], lines[2].replace(b"gpu1", b"gpu2"), *lines[3:]], 4),
    "last changed": (lambda lines: [*lines[:4], lines[4].replace(b"gpu1", b"gpu2")], 5),
    "first removed": (lambda lines: lines[1:], 1),
    "middle removed": (lambda lines: lines[:2] + lines[3:], 3),
    "last removed": (lambda lines: lines[:4], 5),
    "last two removed": (lambda lines: lines[:3], 4),
    "all removed": (lambda _: [], 1),
    "two reordered": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
    "one inserted": (lambda lines: [*lines[:2], lines[0], *lines[2:]], 3),
    "one appended": (lambda lines: [*lines, make_line({"action": "gc"}, digest_of(lines[-1]))], 6),
    "one that is no JSON": (lambda lines: [*lines[:2], b"{", *lines[2:]], 3),
    "an empty line at the end": (lambda lines: [*lines, b""], 6),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("written_after", [0, 2])
def test_an_edit_is_found_where_it_was_made_and_stays_found(keeper: Settings, edit: str, written_after: int) -> None:
    lines = write(keeper, 5)
    change, line = EDITS[edit]
    put(keeper, change(lines))
    healed = edit == "one appended"  # by a writer that could compute the chain: it died before it wrote the head
    write(keeper, written_after)
    breaks = verify_keeper(keeper).breaks
    if healed and written_after:
        assert breaks == ()
    else:
        assert breaks
        assert breaks[0].file == str(log(keeper))
        assert breaks[0].line == line or written_after


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_of_a_log_is_found(data: st.DataObject) -> None:
    lines, previous = [], "0" * 64
    for number in range(data.draw(st.integers(1, 6))):
        lines.append(make_line({"action": "infer", "number": number, "text": "Löß\n"}, previous))
        previous = digest_of(lines[-1])
    content = b"".join(line + b"\n" for line in lines)
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    edited = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    head = AuditHead(len(lines), previous)
    is_whole = edited.endswith(b"\n")
    found = verify(edited.removesuffix(b"\n").split(b"\n"), head) if edited else verify([], head)
    assert (edited != content) == (bool(found) or not is_whole)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"lines": -1, "digest": ""}', b"[" * 10**5])
def test_a_head_that_is_none_is_missed_for_ever(keeper: Settings, content: bytes) -> None:
    write(keeper, 3)
    (keeper.log / "audit.head").write_bytes(content)
    assert "missing" in verify_keeper(keeper).breaks[0].reason
    write(keeper, 2)
    assert [at.line for at in verify_keeper(keeper).breaks] == [4]


def test_a_head_reads_back_and_is_as_long_as_ever() -> None:
    for head in (AuditHead(), AuditHead(10**9, "f" * 64)):
        assert unpack_head(pack_head(head)) == head
        assert len(pack_head(head)) == len(pack_head(AuditHead()))


def test_a_line_that_a_full_disk_cut_short_is_cut_off(keeper: Settings) -> None:
    lines = write(keeper, 3)
    log(keeper).write_bytes(b"\n".join([*lines, b'{"time": "20']))
    assert "it is cut short" in [at.reason for at in verify_keeper(keeper).breaks]
    write(keeper, 1)
    assert verify_keeper(keeper) == Verdict((str(log(keeper)),), 4, ())


def test_a_writer_that_died_before_the_head_was_written_leaves_no_break(keeper: Settings) -> None:
    lines = write(keeper, 4)
    (keeper.log / "audit.head").write_bytes(pack_head(AuditHead(3, digest_of(lines[2]))))
    write(keeper, 1)
    assert verify_keeper(keeper) == Verdict((str(log(keeper)),), 5, ())


FIFTY = """
import os, sys
from pathlib import Path
from rbee import audit
from rbee.base.settings import Settings
settings, told = Settings(Path(sys.argv[1])), []
def child(number):
    for turn in range(5):
        audit.record(settings, "infer", emit=told.append, node=f"n{number}", turn=turn)
    os._exit(bool(told))
pids = [os.fork() or child(number) for number in range(50)]
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in pids))
"""


def test_fifty_processes_write_one_chain(keeper: Settings) -> None:
    done = run(FIFTY, str(keeper.home))
    assert (done.returncode, done.stderr) == (0, "")
    assert verify_keeper(keeper) == Verdict((str(log(keeper)),), 250, ())
    entries = last_entries(keeper, 1000, None)
    assert {(entry["node"], entry["turn"]) for entry in entries} == {
        (f"n{i}", turn) for i in range(50) for turn in range(5)
    }
    assert [entry["turn"] for entry in last_entries(keeper, 3, "n7")] == [2, 3, 4]


def rotating(keeper: Settings, count: int) -> None:
    for number in range(count):
        AuditLog(keeper.log, rotate_at=500).append({"action": "infer", "number": number})


def test_a_large_log_is_put_away_and_goes_on_with_its_digest(keeper: Settings) -> None:
    write(keeper, 1)
    rotating(keeper, 20)
    files = AuditLog(keeper.log).rotated()
    assert len(files) >= 3
    verdict = verify_keeper(keeper)
    assert verdict.breaks == ()
    assert verdict.files == (*map(str, files), str(log(keeper)))
    first = json.loads(log(keeper).read_bytes().splitlines()[0])
    assert first["action"] == "audit.rotated"
    assert first["before"] == files[-1].name
    assert first["previous"] == digest_of(files[-1].read_bytes().splitlines()[-1])
    assert [entry["number"] for entry in last_entries(keeper, 100, None) if "number" in entry] == list(range(20))


@pytest.mark.parametrize("index", [0, 1, -1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("how", ["removed", "cut", "swapped"])
def test_what_happens_to_a_file_that_was_put_away_is_found(keeper: Settings, index: int, how: str) -> None:
    write(keeper, 1)
    rotating(keeper, 20)
    files = AuditLog(keeper.log).rotated()
    if how == "removed":
        files[index].unlink()
    elif how == "cut":
        files[index].write_bytes(b"".join(files[index].read_bytes().splitlines(keepends=True)[:-1]))
    else:
        other = files[index - 1]
        mine, others = files[index].read_bytes(), other.read_bytes()
        files[index].write_bytes(others)
        other.write_bytes(mine)
    assert verify_keeper(keeper).breaks


def test_a_writer_that_died_while_it_put_the_log_away_leaves_no_break(keeper: Settings) -> None:
    write(keeper, 1)
    log(keeper).rename(keeper.log / "audit-0001-20260102.log")
    assert verify_keeper(keeper).breaks == ()
    write(keeper, 1)
    assert verify_keeper(keeper).breaks == ()
    assert last_entries(keeper, 3, None)[1]["action"] == "audit.rotated"


def test_what_is_written_while_a_log_is_read_is_no_break() -> None:
    lines, previous = [], "0" * 64
    for number in range(5):
        lines.append(make_line({"number": number}, previous))
        previous = digest_of(lines[-1])
    seen = AuditHead(3, digest_of(lines[2]))
    for read in (3, 4, 5):
        verifier = Verifier(seen=seen)
        for line in lines[:read]:
            verifier.take(line)
        assert verifier.end(AuditHead(5, previous)) == []
    verifier = Verifier(seen=seen)
    for line in lines[:2]:
        verifier.take(line)
    assert [at.line for at in verifier.end(AuditHead(5, previous))] == [3]


def test_a_log_that_cannot_be_written_fails_nothing_and_is_told(keeper: Settings) -> None:
    keeper.home.mkdir()
    keeper.log.write_text("a file where the folder should be")
    told: list[Event] = []
    with audit.recorded(keeper, "hive.stop", emit=told.append, node="gpu1"):
        pass
    (notice,) = told
    assert isinstance(notice, Notice)
    assert "hive.stop could not be written to the audit log" in notice.text


def test_a_lock_that_nobody_lets_go_is_waited_for_and_then_told(
    keeper: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(keeper, 1)
    monkeypatch.setattr("rbee_remote.protocol.audit_log.LOCK_PATIENCE_S", 0.1)
    told: list[Event] = []
    with (keeper.log / "audit.head").open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        audit.record(keeper, "gc", emit=told.append)
    assert [event.text for event in told if isinstance(event, Notice)] == [
        f"gc could not be written to the audit log {keeper.log}: another process holds its lock"
    ]
    assert verify_keeper(keeper).lines == 1


def test_no_room_leaves_no_half_line(keeper: Settings) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from rbee import audit; from rbee.base.settings import Settings\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = (Path(sys.argv[1]) / 'log' / 'audit.log').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))\n"
        "told = []; audit.record(Settings(Path(sys.argv[1])), 'gc', emit=told.append); sys.exit(told[0].text)"
    )
    write(keeper, 2)
    before = log(keeper).read_bytes()
    assert "gc could not be written to the audit log" in run(code, str(keeper.home)).stderr
    assert log(keeper).read_bytes() == before
    assert verify_keeper(keeper).breaks == ()


def test_recording_imports_nothing_heavy(keeper: Settings) -> None:
    code = (
        "import sys; from pathlib import Path; from rbee import audit; from rbee.base.settings import Settings\n"
        "audit.record(Settings(Path(sys.argv[1])), 'infer', emit=print)\n"
        "print(sorted({'rich', 'sqlite3', 'asyncssh', 'tomllib', 'socket', 'filelock'} & set(sys.modules)))"
    )
    done = run(code, str(keeper.home))
    assert done.stdout.splitlines()[-1] in ("[]", "['socket']"), done.stdout + done.stderr  # asyncio brings socket


def test_who_is_percent_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(who, "user", lambda: "jörg\r\nX: y")
    monkeypatch.setattr(who, "host", lambda: "häuschen")
    assert who.who() == "j%C3%B6rg%0D%0AX%3A%20y@h%C3%A4uschen"
