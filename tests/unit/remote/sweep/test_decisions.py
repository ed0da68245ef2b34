"""Who is ended and who is spared, on a machine whose processes a test writes."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.protocol import ProcessSeen, TidyRequest, TidyResult
from rbee_remote.sweep.survey import survey
from rbee_remote.sweep.tidy import tidy
from rbee_remote.system.interface import Process
from rbee_remote.system.process_tree import grow
from tests.doubles.system import ScriptedSystem

ID = "0123456789abcdef"


def seen_by(node: ScriptedSystem) -> tuple[ProcessSeen, ...]:
    return survey(node, node.home, node.run_dir).processes


def end(node: ScriptedSystem, *seen: ProcessSeen) -> list[TidyResult]:
    return list(tidy(node, TidyRequest(node.home, node.run_dir, seen)).results)


def orphan(node: ScriptedSystem, *, manners: str = "asked") -> tuple[Process, ProcessSeen]:
    """A worker whose hive died, as it was surveyed."""
    hive = node.start("hive")
    worker = node.start("worker", instance=ID, owner=hive, manners=manners)
    node.end(hive)
    (seen,) = seen_by(node)
    return worker, seen


# --- the survey -------------------------------------------------------------------------------------------------------


def test_a_survey_tells_who_owns_whom_and_who_answers() -> None:
    node = ScriptedSystem()
    hive = node.start("hive")
    worker = node.start("worker", instance=ID, owner=hive)
    node.set_busy(worker, True)
    node.start("download", owner=hive)
    first, second, third = seen_by(node)
    assert (first.command, first.answers, first.owner, first.owner_lives) == ("hive", True, "", None)
    assert (second.instance, second.answers, second.busy, second.owner_lives) == (ID, True, True, True)
    assert second.owner == f"{hive.pid}.{hive.start_ticks}"
    assert (third.command, third.answers, third.owner_lives) == ("download", None, True)


def test_the_worker_of_a_container_is_another_nodes_although_its_owner_is_no_process_here() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    node.contained.add(worker.pid)
    assert seen_by(node) == ()
    assert [result.done for result in end(node, seen)] == [False]
    assert node.signals == []


def test_an_owner_is_dead_when_its_pid_is_somebody_elses_and_when_it_is_a_zombie() -> None:
    node = ScriptedSystem()
    hive = node.start("hive")
    node.start("worker", instance=ID, owner=hive)
    node.zombify(hive)
    assert [seen.owner_lives for seen in seen_by(node)] == [False]
    node.end(hive)
    node.start("vim", argv=["vim"], pid=hive.pid)
    assert [seen.owner_lives for seen in seen_by(node)] == [False]


def test_of_two_hives_of_a_home_the_one_that_does_not_answer_is_told_apart() -> None:
    node = ScriptedSystem()
    node.start("hive")
    node.start("hive")
    assert [seen.answers for seen in seen_by(node)] == [True, False]


def test_other_users_other_homes_and_whoever_mentions_us_are_not_seen() -> None:
    node, other = ScriptedSystem(), ScriptedSystem(home="/other/home")
    node.start("hive", uid=0)
    node.start("worker", argv=other.start("worker", instance=ID).argv)
    node.start("tail", argv=["tail", "-f", f"{node.home}/log/worker-{ID}.log"])
    node.start("sh", argv=["sh", "-c", f"python -I {node.home}/payloads/{'ab' * 8}.zip worker"])
    assert seen_by(node) == ()


def test_a_stopped_worker_is_seen_as_such() -> None:
    node = ScriptedSystem()
    worker, _ = orphan(node)
    node.freeze(worker)
    (seen,) = seen_by(node)
    assert (seen.state, seen.answers) == ("T", False)


# --- the escalation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manners", "signals"),
    [("asked", []), ("term", [signal.SIGTERM]), ("kill", [signal.SIGTERM, signal.SIGKILL])],
)
def test_an_orphan_is_asked_then_told_then_killed(manners: str, signals: list[int]) -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node, manners=manners)
    assert end(node, seen) == [TidyResult(f"pid {worker.pid}", done=True)]
    assert not node.runs(worker)
    # A signal that helps nothing is sent once; only SIGKILL is repeated, for what a dying process starts.
    assert list(dict.fromkeys(number for _, number in node.signals)) == signals


def test_one_that_not_even_the_kernel_can_end_is_told_as_it_is() -> None:
    node = ScriptedSystem()
    _, seen = orphan(node, manners="never")
    (result,) = end(node, seen)
    assert not result.done
    assert "still there after SIGKILL" in result.why


def test_a_stopped_orphan_is_woken_to_end() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node, manners="term")
    node.freeze(worker)
    assert end(node, seen)[0].done
    assert [number for _, number in node.signals] == [signal.SIGTERM, signal.SIGCONT]


def test_a_pid_that_was_used_again_is_left_alone() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    node.end(worker)
    innocent = node.start("worker", instance=ID, pid=worker.pid)
    (result,) = end(node, seen)
    assert not result.done
    assert "another process" in result.why
    assert node.runs(innocent)
    assert node.signals == []


def test_a_process_from_before_a_restart_is_left_alone_even_where_pid_and_start_time_fit() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    node.reboot()
    hive = node.start("hive")
    same = node.start("worker", instance=ID, owner=hive, pid=worker.pid)
    assert same.name == worker.name
    (result,) = end(node, seen)
    assert "restart" in result.why
    assert node.runs(same)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"instance": "f" * 16}, "command line"),
        ({"owner": "1.1"}, "command line"),
        ({"command": "download"}, "command line"),
        ({"start_ticks": 7}, "another process"),
        ({"pid": 1}, "ended"),
        ({"boot_id": "elsewhere"}, "restart"),
    ],
)
def test_one_wrong_detail_spares_it(change: dict[str, Any], why: str) -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    (result,) = end(node, dataclasses.replace(seen, **change))
    assert why in result.why
    assert node.runs(worker)
    assert node.signals == []


def test_what_a_keeper_says_of_the_owner_is_not_believed() -> None:
    node = ScriptedSystem()
    hive = node.start("hive")
    worker = node.start("worker", instance=ID, owner=hive)
    _, seen = seen_by(node)
    (result,) = end(node, dataclasses.replace(seen, owner_lives=False))
    assert "its hive runs" in result.why
    unowned = node.start("download")
    (result,) = end(node, *[seen for seen in seen_by(node) if seen.pid == unowned.pid])
    assert "it is not known whether" in result.why
    assert node.runs(worker)
    assert node.runs(unowned)


def test_a_request_that_came_since_the_survey_spares_the_worker_until_it_is_over() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    node.set_busy(worker, True)
    (result,) = end(node, seen)
    assert "open request" in result.why
    assert node.runs(worker)
    node.set_busy(worker, False)
    assert end(node, seen)[0].done


def test_a_process_that_is_named_twice_gets_the_same_answer_twice_and_one_from_another_boot_its_own() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    node.set_busy(worker, True)
    again = dataclasses.replace(seen, age_s=99.0)
    elsewhere = dataclasses.replace(seen, boot_id="elsewhere")
    first, second, third = end(node, seen, again, elsewhere)
    assert first == second
    assert "open request" in first.why
    assert "restart" in third.why


def test_a_hive_that_answers_or_may_be_starting_is_left_alone() -> None:
    node = ScriptedSystem()
    answering, starting = node.start("hive"), node.start("hive")
    first, second = end(node, *seen_by(node))
    assert "answers" in first.why
    assert "starting" in second.why
    node.sleep(61.0)
    _, second = end(node, *seen_by(node))
    assert second.done
    assert node.runs(answering)
    assert not node.runs(starting)


def test_a_hive_goes_before_what_it_owns_wherever_it_stands_in_the_request() -> None:
    node = ScriptedSystem()
    hive = node.start("hive")
    worker = node.start("worker", instance=ID, owner=hive)
    node.freeze(hive)
    node.sleep(61.0)
    results = end(node, *reversed(seen_by(node)))
    assert [result.what for result in results] == [f"pid {worker.pid}", f"pid {hive.pid}"]
    assert all(result.done for result in results)


def test_the_workers_of_a_hung_hive_do_not_end_with_it() -> None:
    node = ScriptedSystem()
    hive = node.start("hive")
    worker = node.start("worker", instance=ID, owner=hive)
    helper = node.start("inspect", owner=hive, session=hive.session)
    node.freeze(hive)
    node.sleep(61.0)
    assert end(node, seen_by(node)[0])[0].done
    assert not node.runs(helper)
    assert node.runs(worker)


def test_children_in_sessions_of_their_own_end_too_and_strangers_do_not() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node, manners="kill")
    child = node.start("child", argv=["child"], parent=worker, session=worker.pid, manners="term")
    grandchild = node.start("grandchild", argv=["grandchild"], parent=child, manners="kill")
    adopted = node.start("adopted", argv=["adopted"], session=worker.pid, manners="kill")
    stranger = node.start("stranger", argv=["stranger"])
    assert end(node, seen)[0].done
    assert [node.runs(process) for process in (child, grandchild, adopted, stranger)] == [False, False, False, True]
    assert node.wronged == []


def test_ended_means_that_the_gpu_is_free_too() -> None:
    node = ScriptedSystem()
    worker, seen = orphan(node)
    node.gpu = {worker.pid}
    node.gpu_pids = lambda: frozenset(node.gpu)  # type: ignore[method-assign]  # a driver that forgets nobody
    (result,) = end(node, seen)
    assert not result.done
    assert "GPU" in result.why


# --- families ---------------------------------------------------------------------------------------------------------


def process(pid: int, *, parent: int = 1, session: int = 0, ticks: int = 1) -> Process:
    return Process(pid, ticks, 1000, parent, session or pid, session or pid)


def test_a_session_whose_number_is_used_again_is_another_one() -> None:
    stranger = process(7, session=5)
    assert grow({}, [stranger], led={5}, spare=set()) == {}
    left = process(6, session=5)
    assert set(grow({left.name: left}, [left, stranger], led={5}, spare=set())) == {left.name, stranger.name}


@given(st.lists(st.tuples(st.integers(2, 12), st.integers(1, 12), st.integers(1, 12)), unique_by=lambda row: row[0]))
def test_a_family_is_closed_and_holds_no_one_without_a_tie_to_it(rows: list[tuple[int, int, int]]) -> None:
    everybody = [process(pid, parent=parent, session=session) for pid, parent, session in rows]
    known = {one.name: one for one in everybody[:1]}
    family = grow(known, everybody, led=set(), spare=set())
    pids = {one.pid for one in family.values()}
    for one in everybody:
        tied = one.parent in pids or one.session in pids & {other.session for other in family.values()}
        assert (one.name in family) == (tied or one.name in known)
