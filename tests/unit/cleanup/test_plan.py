"""What `rbee gc` decides about a node: every rule by example, then whatever a node may show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.cleanup.actions import DropRow, EndProcess, NodeSeen, Policy, StopWorker
from rbee.cleanup.plan import judge, judge_unlisted, plan
from rbee.registry import WorkerRow
from rbee_remote.protocol import Lease, WorkerInfo, WorkerState
from rbee_remote.protocol.sweep import ProcessSeen
from tests.unit.cleanup.gc_samples import (
    BOOT,
    HOME,
    ME,
    NODE,
    OTHER,
    RUN_DIR,
    WORKER,
    hive,
    hive_process,
    orphan,
    process,
    row,
    seen,
    worker,
)

POLICY = Policy(ME)
HOUR = 3600.0


def decided(seen_: NodeSeen, *rows: WorkerRow, policy: Policy = POLICY) -> list[type]:
    return [type(action) for action in plan(NODE, seen_, rows, policy)]


def why_kept(seen_: NodeSeen, *rows: WorkerRow, policy: Policy = POLICY) -> str:
    judged = judge(NODE, seen_, rows, policy)
    assert judged.actions == ()
    return "; ".join(f"{kept.what}: {kept.why}" for kept in judged.kept)


def with_worker(info: WorkerInfo) -> NodeSeen:
    return seen(hive_process(), process(), hive=hive(), workers=(info,))


def test_a_node_at_rest_needs_nothing() -> None:
    assert decided(seen()) == []
    assert decided(seen(hive_process(), hive=hive())) == []


class TestWorkers:
    def test_one_within_its_keep_alive_stays(self) -> None:
        assert "idle for 1m" in why_kept(with_worker(worker(Lease(ME, 240.0))), row())

    @pytest.mark.parametrize(("idle_s", "expected"), [(300.0, []), (329.0, []), (330.0, [StopWorker])])
    def test_one_past_its_keep_alive_gets_half_a_minute_to_end_by_itself(
        self, idle_s: float, expected: list[type]
    ) -> None:
        assert decided(with_worker(worker(idle_s=idle_s))) == expected

    def test_the_hive_is_told_for_how_long_it_has_to_have_been_idle(self) -> None:
        (action,) = plan(NODE, with_worker(worker(idle_s=500.0)), [], POLICY)
        assert isinstance(action, StopWorker)
        assert (action.node, action.worker_id, action.only_idle_s) == (NODE, WORKER, 330.0)
        assert "8m20s" in action.why
        assert "5m" in action.why

    @pytest.mark.parametrize("state", [state for state in WorkerState if state is not WorkerState.IDLE])
    def test_one_that_is_not_idle_stays(self, state: WorkerState) -> None:
        info = replace(worker(idle_s=9 * HOUR), state=state)
        assert state.value in why_kept(with_worker(info), policy=Policy(ME, older_than_s=1.0))

    @pytest.mark.parametrize("left", [200.0, None])
    @pytest.mark.parametrize("keeper", [OTHER, ""])
    def test_another_keepers_lease_holds_it_whatever_is_asked(self, left: float | None, keeper: str) -> None:
        info = worker(Lease(keeper, left), idle_s=9 * HOUR)
        assert "holds it" in why_kept(with_worker(info), policy=Policy(ME, older_than_s=1.0))

    def test_a_lease_that_is_over_holds_nothing(self) -> None:
        assert decided(with_worker(worker(Lease(OTHER, 0.0), idle_s=HOUR))) == [StopWorker]

    def test_older_than_overrides_our_own_keep_alive(self) -> None:
        kept_for_ever = worker(Lease(ME, None), idle_s=2 * HOUR, keep_alive_s=-1.0)
        assert decided(with_worker(kept_for_ever)) == []
        assert decided(with_worker(kept_for_ever), policy=Policy(ME, older_than_s=HOUR)) == [StopWorker]
        assert decided(with_worker(kept_for_ever), policy=Policy(ME, older_than_s=3 * HOUR)) == []


class TestRows:
    def test_one_that_the_hive_lists_stays(self) -> None:
        assert decided(with_worker(worker()), row()) == []

    def test_one_that_the_hive_does_not_know_goes(self) -> None:
        (action,) = plan(NODE, seen(hive_process(), hive=hive()), [row()], POLICY)
        assert action == DropRow(NODE, "the hive does not know it", WORKER)

    def test_without_a_hive_its_process_decides(self) -> None:
        assert decided(seen(), row()) == [DropRow]
        assert decided(seen(process(pid=21)), row(worker_id="9" * 16)) == [DropRow]
        assert "process runs" in why_kept(seen(process()), row())

    def test_a_pid_that_became_another_processes_is_no_sign_of_life(self) -> None:
        reused = process(instance="9" * 16, start_ticks=999)
        assert decided(seen(reused), row()) == [DropRow]

    def test_a_zombie_is_no_sign_of_life(self) -> None:
        assert decided(seen(process(state="Z")), row()) == [DropRow]

    def test_one_from_before_a_reboot_goes(self) -> None:
        assert decided(seen(process()), row(boot_id="0" * 32)) == [DropRow]

    def test_another_home_on_the_same_machine_is_none_of_this_hives_business(self) -> None:
        elsewhere = row(socket=f"/run/user/1000/rbee/ffffffff/worker-{WORKER}.sock")
        assert "another home" in why_kept(seen(hive_process(), hive=hive()), elsewhere)

    def test_a_hive_that_does_not_answer_is_not_asked_who_lives(self) -> None:
        hung = seen(hive_process(answers=False), process())
        assert "does not prove that it is dead" in why_kept(hung, row())

    def test_rows_of_nodes_that_are_not_in_the_inventory_go_when_nobody_goes_by_them(self) -> None:
        seen_at = 1767225600.0  # as in the row
        assert judge_unlisted([row()], seen_at + 30).actions == ()
        (action,) = judge_unlisted([row(node="away")], seen_at + 2 * HOUR).actions
        assert (action.node, type(action)) == ("away", DropRow)


class TestProcesses:
    def test_one_whose_hive_lives_is_where_it_belongs(self) -> None:
        assert judge(NODE, seen(hive_process(), process(), hive=hive(), workers=(worker(),)), [], POLICY).actions == ()
        assert decided(seen(hive_process(answers=False), process(answers=False))) == []

    def test_an_orphan_that_does_not_answer_is_ended(self) -> None:
        (action,) = plan(NODE, seen(orphan(state="T")), [], POLICY)
        assert isinstance(action, EndProcess)
        assert action.process == orphan(state="T")
        assert action.why == "the hive that started it (pid 10) is gone, and it does not answer (it is stopped)"

    def test_an_orphan_at_work_is_left_alone(self) -> None:
        assert "answering a request" in why_kept(seen(orphan(answers=True, busy=True)))

    @pytest.mark.parametrize(("age_s", "expected"), [(59.0, []), (61.0, [EndProcess])])
    def test_an_orphan_without_work_gets_a_minute_to_end_by_itself(self, age_s: float, expected: list[type]) -> None:
        assert decided(seen(orphan(answers=True, age_s=age_s))) == expected

    @pytest.mark.parametrize("command", ["download", "inspect", "measure", "ggml_gpus", "render"])
    def test_helpers_of_a_dead_hive_are_ended(self, command: str) -> None:
        helper = orphan(command=command, instance="", answers=None)
        assert decided(seen(helper)) == [EndProcess]
        assert decided(seen(replace(helper, owner_lives=True))) == []

    def test_what_does_not_say_whose_it_is_is_left_alone(self) -> None:
        assert "so it may be in use" in why_kept(seen(orphan(owner="", owner_lives=None)))

    @pytest.mark.parametrize("state", [{"state": "Z"}, {"boot_id": "0" * 32}, {"age_s": 5.0}])
    def test_no_evidence_no_end(self, state: dict[str, object]) -> None:
        assert decided(seen(orphan(**state))) == []

    def test_a_worker_that_the_hive_vouches_for_is_left_alone(self) -> None:
        assert decided(seen(orphan(), hive=hive(), workers=(worker(),))) == []

    @pytest.mark.parametrize("answers", [True, False, None])
    def test_no_hive_is_ever_ended(self, answers: bool | None) -> None:
        assert why_kept(seen(hive_process(answers=answers, age_s=1e6, state="T")))

    def test_a_second_hive_is_explained(self) -> None:
        assert "hive (pid 11)" in why_kept(seen(hive_process(pid=11), hive=hive()))


# --- whatever a node may show ------------------------------------------------------------------------------------

KEEPERS = st.sampled_from([ME, OTHER, ""])
SECONDS = st.floats(0, 1e6)
IDS = st.sampled_from([WORKER, "1" * 16, "2" * 16])
LEASES = st.lists(st.builds(Lease, KEEPERS, st.none() | SECONDS), max_size=3).map(tuple)
WORKERS = st.lists(
    st.builds(
        lambda leases, idle_s, state, keep_alive_s, name: replace(
            worker(*leases, idle_s=idle_s), state=state, keep_alive_s=keep_alive_s, id=name
        ),
        LEASES,
        st.none() | SECONDS,
        st.sampled_from(WorkerState),
        st.just(-1.0) | SECONDS,
        IDS,
    ),
    max_size=3,
).map(tuple)
PROCESSES = st.lists(
    st.builds(
        ProcessSeen,
        pid=st.integers(1, 30),
        start_ticks=st.integers(1, 3),
        boot_id=st.sampled_from([BOOT, "0" * 32]),
        command=st.sampled_from(["hive", "worker", "download", "measure", "ggml_gpus", "render"]),
        payload=st.just("p"),
        instance=IDS | st.just(""),
        owner=st.just("10.100") | st.just(""),
        owner_lives=st.none() | st.booleans(),
        state=st.sampled_from("STZRD"),
        age_s=SECONDS,
        answers=st.none() | st.booleans(),
        busy=st.booleans(),
    ),
    max_size=4,
).map(tuple)
ROWS = st.lists(
    st.builds(
        lambda name, boot, folder: row(worker_id=name, boot_id=boot, socket=f"{folder}/worker-{name}.sock"),
        IDS,
        st.sampled_from([BOOT, "0" * 32, ""]),
        st.sampled_from([RUN_DIR, "/tmp/rbee-1000/0011aabb", "/tmp/rbee-1000/ffffffff"]),
    ),
    max_size=3,
)
NODES = st.builds(
    lambda processes, hive_, workers: seen(*processes, hive=hive_, workers=workers if hive_ else ()),
    PROCESSES,
    st.none() | st.just(hive()),
    WORKERS,
)
POLICIES = st.builds(Policy, st.just(ME), st.none() | SECONDS)


@settings(max_examples=300, deadline=None)
@given(NODES, ROWS, POLICIES)
def test_whatever_a_node_shows_nothing_alive_is_harmed(shown: NodeSeen, rows: list[WorkerRow], policy: Policy) -> None:
    workers = {info.id: info for info in shown.workers}
    for action in plan(NODE, shown, rows, policy):
        assert action.why
        assert action.what
        match action:
            case StopWorker():
                info = next(one for one in shown.workers if one.id == action.worker_id and one.idle_s is not None)
                assert info.idle_s is not None
                assert action.only_idle_s <= max(one.idle_s or 0.0 for one in shown.workers)
                holders = [[one for one in each.leases if one.left_s != 0.0 and one.keeper != ME]
                           for each in shown.workers if each.id == action.worker_id]  # fmt: skip
                assert [] in holders
            case EndProcess():
                ended = action.process
                assert (ended.command != "hive", ended.owner_lives, ended.busy) == (True, False, False)
                assert ended.boot_id == BOOT
                assert ended.age_s >= 10
            case DropRow():
                assert action.worker_id not in workers


@settings(max_examples=100, deadline=None)
@given(NODES, ROWS, POLICIES)
def test_each_thing_gets_one_verdict_at_most(shown: NodeSeen, rows: list[WorkerRow], policy: Policy) -> None:
    judged = judge(NODE, shown, rows, policy)
    assert len(judged.actions) + len(judged.kept) <= len(shown.workers) + len(shown.survey.processes) + len(rows)
    assert plan(NODE, shown, rows, policy) == list(judged.actions)
    assert shown.survey.home == HOME
