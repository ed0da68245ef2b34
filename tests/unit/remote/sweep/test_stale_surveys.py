"""Whatever happens between survey and tidy, however late tidy comes: nobody is ended who should not be."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee_remote.protocol import ProcessSeen, TidyRequest
from rbee_remote.sweep.survey import survey
from rbee_remote.sweep.tidy import tidy
from rbee_remote.system.interface import Process
from tests.doubles.system import MANNERS, ScriptedSystem


class StaleSurveys(RuleBasedStateMachine):
    """A node on which things happen, and keepers that act on what they once saw."""

    def __init__(self) -> None:
        super().__init__()
        self.node = ScriptedSystem()
        self.hives: list[Process] = []
        self.owned: dict[Process, Process] = {}
        self.innocent: list[Process] = []
        self.busy: set[Process] = set()
        self.seen: set[ProcessSeen] = set()
        self.free_pids: list[int] = []

    @rule()
    def a_hive_starts(self) -> None:
        self.hives.append(self.node.start("hive"))

    @precondition(lambda self: self.hives)
    @rule(data=st.data(), manners=st.sampled_from(MANNERS), command=st.sampled_from(["worker", "download"]))
    def it_starts_something(self, data: st.DataObject, manners: str, command: str) -> None:
        hive = data.draw(st.sampled_from(self.hives))
        if self.node.runs(hive):
            instance = f"{len(self.owned):016x}" if command == "worker" else ""
            self.owned[self.node.start(command, instance=instance, owner=hive, manners=manners)] = hive

    @precondition(lambda self: self.hives)
    @rule(data=st.data())
    def a_hive_dies(self, data: st.DataObject) -> None:
        self.ends(data.draw(st.sampled_from(self.hives)))

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), fate=st.sampled_from(["ends", "freezes", "is asked", "is done"]))
    def something_befalls_what_it_started(self, data: st.DataObject, fate: str) -> None:
        process = data.draw(st.sampled_from(list(self.owned)))
        if not self.node.runs(process):
            return
        if fate == "ends":
            self.ends(process)
        elif fate == "freezes" and process not in self.busy:
            self.node.freeze(process)
        elif fate == "is asked" and self.node.find(process.pid).state != "T":  # type: ignore[union-attr]  # it runs
            self.node.set_busy(process, True)
            self.busy.add(process)
        elif process in self.busy:
            self.busy.discard(process)
            self.node.set_busy(process, False)

    @precondition(lambda self: self.free_pids)
    @rule()
    def a_pid_is_used_again(self) -> None:
        pid = self.free_pids.pop()
        if self.node.find(pid) is None:
            self.innocent.append(self.node.start("vim", argv=["vim", self.node.home], pid=pid))

    @rule()
    def the_machine_restarts(self) -> None:
        self.node.reboot()
        self.hives, self.owned, self.innocent, self.busy, self.free_pids = [], {}, [], set(), []

    @rule(seconds=st.floats(0, 120), jump=st.sampled_from([0, 86_400, -86_400]))
    def time_passes(self, seconds: float, jump: float) -> None:
        self.node.sleep(seconds)
        self.node.jump(jump)

    @rule()
    def a_keeper_looks(self) -> None:
        self.seen |= set(survey(self.node, self.node.home, self.node.run_dir).processes)

    @precondition(lambda self: self.seen)
    @rule()
    def a_keeper_acts_on_all_that_was_ever_seen(self) -> None:
        before = [process for process in self.owned if self.node.runs(process)]
        busy = [process for process in self.busy if self.node.runs(process)]
        answering = next((hive for hive in self.hives if self.node.runs(hive)), None)
        seen = tuple(sorted(self.seen, key=lambda one: (one.boot_id, one.pid, one.start_ticks)))
        results = tidy(self.node, TidyRequest(self.node.home, self.node.run_dir, seen)).results
        assert [result.what for result in results] == [f"pid {one.pid}" for one in seen]
        assert all(result.done or result.why for result in results)
        # A second hive, which does not answer, is ended where it was named; what it owned is an orphan from then on.
        owned = [process for process in before if self.node.runs(self.owned[process])]
        assert all(self.node.runs(process) for process in (*owned, *busy))
        assert answering is None or self.node.runs(answering)

    @invariant()
    def nobody_was_wronged(self) -> None:
        assert self.node.wronged == []
        assert all(self.node.runs(process) for process in self.innocent)

    def ends(self, process: Process) -> None:
        if self.node.runs(process):
            self.node.end(process)
            self.busy.discard(process)
            self.free_pids.append(process.pid)


TestStaleSurveys = StaleSurveys.TestCase
TestStaleSurveys.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
