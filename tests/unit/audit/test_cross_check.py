"""What keeper and node note of each other's record: what was deleted here shows there, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbee import audit
from rbee.audit.check import Verdict, verify_keeper, verify_nodes
from rbee.audit.cross_check import MOST_NOTES, Note, NotesOnKeeper, notes_on_nodes, place_of
from rbee.base.settings import Settings, keeper_id
from rbee.base.who import host, user
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.registry import Registry
from rbee_remote.protocol.audit import AUDIT_HEAD, AUDIT_LOG
from rbee_remote.protocol.audit_log import AuditLog
from rbee_remote.system.audit import Audit
from rbee_remote.system.caller import Caller
from rbee_remote.system.layout import Layout

LOCAL = Node("local")
HEADS = [character * 64 for character in "abcdef"]


class Sides:
    """A keeper, and the node `local` of it: their records, written as a spawn writes them."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(folder / "keeper")
        self.layout = Layout(home=folder / "node", run_dir=folder / "run")
        self.node = Node("local", home=str(self.layout.home))

    def spawn(self, *, keeper: str = "", who: str = "") -> None:
        """A worker is started: the node's hive writes it down, and then the keeper."""
        hive = Audit(self.layout)
        caller = Caller(keeper or keeper_id(self.settings), who or f"{user()}@{host()}")
        head = audit.head(self.settings)
        hive.record("worker.start", caller, model="m", worker="w", **({"keeper_head": head} if head else {}))
        self.record("worker.start", place=place_of(self.node, str(self.layout.home)), node_head=hive.head())

    def record(self, action: str, **details: str) -> None:
        audit.record(self.settings, action, emit=lambda event: pytest.fail(str(event)), node="local", **details)

    async def verify(self, **changes: Any) -> tuple[Verdict, Verdict]:
        """Of the keeper's record and the node's, as the command reads them. changes: of the node."""
        settings, node = self.settings, Node("local", **{"home": str(self.layout.home), **changes})
        inventory = Inventory({"local": node})
        context = Context(settings, inventory, lambda: Registry.open(settings.registry_path), keeper_id(settings))
        (answer,) = await verify_nodes(context, [node])
        assert answer.value is not None, answer.error
        return verify_keeper(settings, answer.value.on_keeper), answer.value


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    made = Sides(tmp_path)
    for _ in range(3):
        made.spawn()
    return made


def delete(folder: Path) -> None:
    (folder / AUDIT_LOG).unlink()
    (folder / AUDIT_HEAD).unlink()


def write_anew(folder: Path) -> None:
    """All lines but one, with a chain and a head that fit."""
    entries = [json.loads(line) for line in (folder / AUDIT_LOG).read_bytes().splitlines()]
    delete(folder)
    log = AuditLog(folder)
    for entry in entries[1:]:
        del entry["previous"]
        log.append(entry)


@pytest.mark.parametrize("how", [delete, write_anew])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_nodes_record_that_was_deleted_or_written_anew_is_missed(sides: Sides, how: Any, goes_on: bool) -> None:
    how(sides.layout.logs)
    if goes_on:
        sides.spawn()
    keeper, node = await sides.verify()
    assert (keeper.breaks, node.breaks) == ((), ()), "the chains are whole, and show nothing"
    assert "is missing" in node.missing
    assert keeper.missing == ""


@pytest.mark.parametrize("how", [delete, write_anew])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_the_keepers_record_that_was_deleted_or_written_anew_is_missed(
    sides: Sides, how: Any, goes_on: bool
) -> None:
    how(sides.settings.log)
    if goes_on:
        sides.spawn()
    keeper, node = await sides.verify()
    assert (keeper.breaks, node.breaks) == ((), ())
    assert "is missing" in keeper.missing
    if how is delete:
        assert node.missing == ""


async def test_records_that_are_whole_miss_nothing(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [verdict.missing for verdict in await sides.verify()] == ["", ""]
    monkeypatch.setattr("rbee_remote.protocol.audit_log.ROTATE_AT_BYTES", 1)
    for folder in (sides.settings.log, sides.layout.logs):
        AuditLog(folder, rotate_at=1).append({"action": "put away before this"})
    sides.spawn()
    keeper, node = await sides.verify()
    assert (len(keeper.files), len(node.files)) == (2, 2)
    assert [keeper.missing, node.missing] == ["", ""]


@pytest.mark.parametrize("action", ["uninstall", "nodes.remove", "nodes.add"])
async def test_a_node_that_was_cleared_or_entered_anew_begins_anew(sides: Sides, action: str) -> None:
    delete(sides.layout.logs)
    sides.record(action)
    assert [verdict.missing for verdict in await sides.verify()] == ["", ""]
    sides.spawn()
    assert [verdict.missing for verdict in await sides.verify()] == ["", ""]
    delete(sides.layout.logs)
    assert (await sides.verify())[1].missing


@pytest.mark.parametrize("action", ["uninstall", "nodes.remove", "nodes.add"])
async def test_an_attempt_that_failed_ends_no_note(sides: Sides, action: str) -> None:
    delete(sides.layout.logs)
    sides.record(action, outcome="CONNECTION_LOST")
    assert (await sides.verify())[1].missing


async def test_another_home_or_machine_under_the_same_name_is_another_record(sides: Sides, tmp_path: Path) -> None:
    assert (await sides.verify(home=str(tmp_path / "other")))[1] == Verdict((), 0, ())
    home = str(sides.layout.home)
    nodes = (LOCAL, Node("n", "a"), Node("n", "b"), Node("n", "b", 2222), Node("n", "b", 2222, "bee"))
    assert len({place_of(node, home) for node in nodes}) == len(nodes)


@pytest.mark.parametrize("other", [{"keeper": "0" * 16}, {"who": "anna@elsewhere"}])
async def test_what_is_noted_of_others_says_nothing_of_this_keeper(tmp_path: Path, other: dict[str, str]) -> None:
    sides = Sides(tmp_path)
    for _ in range(3):
        sides.spawn(**other)
    delete(sides.settings.log)
    assert (await sides.verify())[0].missing == ""


def test_nonsense_is_no_note_and_notes_are_bounded() -> None:
    entries: list[dict[str, Any]] = [
        {"action": "worker.start", "node": "n", "node_head": head} for head in (None, 1, "x", "A" * 64, HEADS[0])
    ]
    assert notes_on_nodes(entries) == {"n": [Note(HEADS[0], "None")]}
    assert len(notes_on_nodes(entries * MOST_NOTES)["n"]) == MOST_NOTES
    notes = NotesOnKeeper("k", "me@here")
    for line in (b'{"keeper_head"', b'["keeper_head"]', b"[" * 10_000 + b'"keeper_head"', b'{"keeper_head": 1}'):
        notes.take(line)
    assert not notes.notes
    for head in HEADS * MOST_NOTES:
        notes.take(json.dumps({"keeper": "k", "who": "me@here", "keeper_head": head}).encode())
    assert len(notes.notes) == MOST_NOTES
