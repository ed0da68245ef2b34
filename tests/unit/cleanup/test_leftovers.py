"""Which files go: by kind, age and use, on a node and in the keeper's own home."""

from __future__ import annotations

import pytest

from rbee.cleanup.actions import Kept, NodeSeen, Policy, RemoveFile
from rbee.cleanup.leftovers import judge_file, judge_here
from rbee_remote.protocol.sweep import FileSeen
from tests.unit.cleanup.gc_samples import (
    DAY,
    HOME,
    ME,
    NODE,
    PAYLOAD,
    WORKER,
    file,
    hive,
    hive_process,
    process,
    seen,
    worker,
)

KINDS = ("payload", "runtime", "python", "staging", "wheels", "uv", "part", "download", "model", "log")
HOUR = 3600.0


def why_kept(found: FileSeen, node: NodeSeen | None = None, policy: Policy | None = None) -> str:
    verdict = judge_file(NODE, found, node or seen(), policy or Policy(ME))
    assert isinstance(verdict, Kept), verdict
    return verdict.why


def removed(found: FileSeen, node: NodeSeen | None = None, policy: Policy | None = None) -> str:
    verdict = judge_file(NODE, found, node or seen(), policy or Policy(ME))
    assert isinstance(verdict, RemoveFile), verdict
    assert verdict.file == found
    return verdict.why


@pytest.mark.parametrize("kind", KINDS)
def test_a_week_without_use_is_enough(kind: str) -> None:
    assert "7d" in removed(file(kind, "some/thing", 7 * DAY))
    assert "less than 7d" in why_kept(file(kind, "some/thing", 7 * DAY - 60))


@pytest.mark.parametrize("kind", [*KINDS, "socket"])
def test_what_is_in_use_stays_however_old_it_is(kind: str) -> None:
    assert why_kept(file(kind, "some/thing", 400 * DAY, user="pid 12")) == "pid 12 uses it"
    ours = Policy(ME, in_use=frozenset({f"{HOME}/some/thing"}))
    assert why_kept(file(kind, "some/thing", 400 * DAY), policy=ours) == "this keeper uses it"


@pytest.mark.parametrize("kind", KINDS)
def test_older_than_stops_at_what_another_machine_may_be_at_work_with(kind: str) -> None:
    policy = Policy(ME, older_than_s=60.0)
    assert "less than 2h" in why_kept(file(kind, "some/thing", HOUR), policy=policy)
    assert removed(file(kind, "some/thing", 2 * HOUR), policy=policy)
    assert why_kept(file(kind, "some/thing", 20 * DAY), policy=Policy(ME, older_than_s=30 * DAY))


def test_the_payload_that_a_process_runs_from_stays() -> None:
    payload = file("payload", f"payloads/{PAYLOAD}.zip")
    assert removed(payload, seen(process(payload="1" * 16)))
    assert why_kept(payload, seen(process()))
    assert why_kept(payload, seen(hive=hive()))


def test_the_log_of_a_worker_stays_while_it_runs() -> None:
    log = file("log", f"log/worker-{WORKER}.log")
    assert removed(log)
    assert why_kept(log, seen(process())) == "its worker runs"
    assert why_kept(log, seen(hive=hive(), workers=(worker(),))) == "its worker runs"


def test_a_socket_where_nobody_listens_gets_a_moment() -> None:
    name = f"worker-{WORKER}.sock"
    assert why_kept(file("socket", name, 29.0))
    assert removed(file("socket", name, 31.0)) == "nobody listens there"
    assert why_kept(file("socket", name, DAY), seen(process(answers=False)))


def test_the_socket_of_a_hive_that_does_not_answer_stays() -> None:
    assert why_kept(file("socket", "hive.sock", DAY), seen(hive_process(answers=False))) == "a hive runs"
    assert removed(file("socket", "hive.sock", DAY))


def test_what_a_later_rbee_calls_by_another_name_stays() -> None:
    assert "does not know" in why_kept(file("heirloom", "some/thing", 400 * DAY))


@pytest.mark.parametrize(
    ("kind", "days"), [("answer", 30), ("registry", 30), ("download", 7), ("staging", 7), ("draft", 7)]
)
def test_the_keepers_own_leftovers(kind: str, days: int) -> None:
    files = [file(kind, "old", days * DAY + 1), file(kind, "young", days * DAY - 60)]
    plan = judge_here(files, Policy(ME))
    assert [action.file.path for action in plan.actions if isinstance(action, RemoveFile)] == [f"{HOME}/old"]
    assert [kept.what for kept in plan.kept] == [f"{HOME}/young"]
    in_use = Policy(ME, in_use=frozenset({f"{HOME}/old"}))
    assert judge_here(files, in_use).actions == ()


def test_what_belongs_to_the_user_is_kept_whatever_is_asked() -> None:
    plan = judge_here([file("answer", "answer-1.txt", 20 * DAY)], Policy(ME, older_than_s=60.0))
    assert plan.actions == ()
