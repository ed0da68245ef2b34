"""The hive's audit log: its chain, what a full disk does to it, and when it begins anew."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import HEADER_KEEPER, HEADER_WHO, ErrorCode, RemoteError, Served
from rbee_remote.protocol.audit import GENESIS, AuditBreak, digest_of, unpack_head, verify
from rbee_remote.protocol.audit_log import AuditLog
from rbee_remote.system.audit import MOST_UNWRITTEN, Audit
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.system.layout import Layout

ANNA = Caller("k", "anna@one")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(home=tmp_path / "home", run_dir=tmp_path / "run")
    made.logs.mkdir(parents=True)
    return made


def lines(layout: Layout) -> list[bytes]:
    return layout.audit_log.read_bytes().splitlines()


def entries(layout: Layout) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(layout)]


def breaks(layout: Layout) -> list[AuditBreak]:
    return verify(lines(layout), unpack_head((layout.logs / "audit.head").read_bytes()))


@contextmanager
def full_disk(layout: Layout) -> Iterator[None]:
    """No file can grow beyond what the log has now."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = layout.audit_log.stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_chain_goes_on_after_a_restart_and_a_torn_line(layout: Layout) -> None:
    Audit(layout).record("one", Caller("k"), model="m\n")
    Audit(layout).record("two", ANNA)
    with layout.audit_log.open("ab") as file:
        file.write(b'{"torn')
    Audit(layout).record("three", ANNA)
    assert [entry["action"] for entry in entries(layout)] == ["one", "two", "three"]
    assert entries(layout)[0]["model"] == "m\\n"
    assert breaks(layout) == []


def test_a_writer_that_died_before_the_head_was_written_is_made_up_for(layout: Layout) -> None:
    audit = Audit(layout)
    audit.record("one", ANNA)
    head = (layout.logs / "audit.head").read_bytes()
    audit.record("two", ANNA)
    (layout.logs / "audit.head").write_bytes(head)
    audit.record("three", ANNA)
    assert len(entries(layout)) == 3
    assert breaks(layout) == []


@pytest.mark.parametrize("what", ["changed", "removed", "removed at the end", "swapped", "put in", "without head"])
def test_what_was_tampered_with_stays_so_whatever_is_written_later(layout: Layout, what: str) -> None:
    audit = Audit(layout)
    for action in ("one", "two", "three", "four"):
        audit.record(action, ANNA)
    all_lines = lines(layout)
    if what == "changed":
        all_lines[1] = all_lines[1].replace(b"anna", b"ben")
    elif what == "removed":
        del all_lines[1]
    elif what == "removed at the end":
        del all_lines[-1]
    elif what == "swapped":
        all_lines[1:3] = all_lines[2:0:-1]
    elif what == "put in":
        all_lines.insert(2, all_lines[1])
    else:
        (layout.logs / "audit.head").unlink()
    layout.audit_log.write_bytes(b"".join(line + b"\n" for line in all_lines))
    assert breaks(layout) if what != "without head" else verify(all_lines, None)
    Audit(layout).record("five", ANNA)
    Audit(layout).record("six", ANNA)
    assert breaks(layout)


def test_on_a_full_disk_nothing_starts_and_what_ends_is_written_later(layout: Layout) -> None:
    audit = Audit(layout)
    audit.record("worker.start", ANNA)
    with full_disk(layout):
        with pytest.raises(RemoteError) as refused:
            audit.record("worker.start", ANNA, model="other")
        audit.note("worker.stop", ANNA)
    assert refused.value.code is ErrorCode.DISK_FULL
    assert refused.value.hint
    assert len(entries(layout)) == 1
    assert breaks(layout) == []
    audit.record("worker.start", ANNA)
    assert [entry["action"] for entry in entries(layout)] == ["worker.start", "worker.stop", "worker.start"]
    assert breaks(layout) == []


def test_what_waits_for_room_is_bounded_and_what_is_lost_is_said(layout: Layout) -> None:
    audit = Audit(layout)
    audit.record("worker.start", ANNA)
    with full_disk(layout):
        for number in range(MOST_UNWRITTEN + 5):
            audit.served(Served(f"{number:032x}", "k", "me@here", 1, 1, "stop"), model="m", worker="w")
    audit.note("worker.stop", ANNA)
    actions = [(entry["action"], entry.get("lines")) for entry in entries(layout)]
    assert actions[:2] == [("worker.start", None), ("audit.lost", 6)]
    assert len(actions) == 2 + MOST_UNWRITTEN
    assert breaks(layout) == []


def test_a_log_that_has_grown_large_begins_anew_and_the_chain_goes_on(layout: Layout) -> None:
    log = AuditLog(layout.logs, rotate_at=2000)
    for number in range(100):
        log.append({"action": "infer", "number": number})
    files = log.rotated()
    assert len(files) > 3
    assert files[0].name.startswith("audit-0001-")
    start = GENESIS
    for path in files:
        closed = path.read_bytes().splitlines()
        assert json.loads(closed[0])["previous"] == start
        start = digest_of(closed[-1])
    head = unpack_head((layout.logs / "audit.head").read_bytes())
    assert verify(lines(layout), head, start) == []
    everything = [line for path in (*files, layout.audit_log) for line in path.read_bytes().splitlines()]
    numbers = [entry["number"] for line in everything if (entry := json.loads(line))["action"] == "infer"]
    assert numbers == list(range(100))


def test_who_it_was_is_decoded_bounded_and_one_printable_line() -> None:
    caller = caller_of({HEADER_KEEPER: "k" * 100, HEADER_WHO: "b%C3%A9e%40x%0a%ff@" + "h" * 500})
    assert caller.who.startswith("bée@x\\n\ufffd@hhh")
    assert len(caller.who) < 200
    assert len(caller.keeper) == 64
    assert caller.who.isprintable()
    assert caller_of({}) == Caller("", "")
