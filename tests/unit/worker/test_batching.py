"""The scheduler against random arrivals, cancels and interruptions: nothing lost, nothing twice, nobody overtaken."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee_remote.worker.batching import Plan, QueueFull, Scheduler


def test_prompts_are_computed_in_chunks_and_only_the_last_token_has_logits() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=4)
    scheduler.submit("a", range(6))
    first = scheduler.plan()
    assert [(token, pos, logits) for token, pos, _, logits in first.batch] == [(n, n, False) for n in range(4)]
    assert first.seated == (("a", 0),)
    assert first.spans[0].row is None
    scheduler.commit(first)
    second = scheduler.plan()
    assert [(token, pos, logits) for token, pos, _, logits in second.batch] == [(4, 4, False), (5, 5, True)]
    assert second.spans[0].row == 1
    assert second.seated == ()


def test_decoding_goes_before_prefill_in_the_same_step() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=4)
    scheduler.submit("talks", [1])
    scheduler.commit(scheduler.plan())
    scheduler.append("talks", 2)
    scheduler.submit("reads", range(10))
    plan = scheduler.plan()
    assert [(span.key, span.count) for span in plan.spans] == [("talks", 1), ("reads", 3)]


def test_a_step_that_was_not_committed_is_planned_again() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=4)
    scheduler.submit("a", range(3))
    assert scheduler.plan().batch == scheduler.plan().batch


def test_a_rewound_request_computes_its_answer_again_as_well() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=8)
    scheduler.submit("a", [10, 11])
    scheduler.commit(scheduler.plan())
    scheduler.append("a", 12)
    scheduler.rewind("a")
    assert [token.token for token in scheduler.plan().batch] == [10, 11, 12]


def test_the_queue_is_bounded() -> None:
    scheduler = Scheduler(slots=1, queue=1, n_batch=4)
    scheduler.submit("a", [1])
    scheduler.submit("b", [1])
    with pytest.raises(QueueFull):
        scheduler.submit("c", [1])


@pytest.mark.parametrize(("key", "prompt"), [("a", [1]), ("b", [])])
def test_a_request_needs_a_key_of_its_own_and_a_prompt(key: str, prompt: list[int]) -> None:
    scheduler = Scheduler(slots=1, queue=4, n_batch=4)
    scheduler.submit("a", [1])
    with pytest.raises(ValueError, match="a prompt and a key"):
        scheduler.submit(key, prompt)


def test_more_slots_than_a_step_has_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        Scheduler(slots=5, queue=0, n_batch=4)


def test_a_token_cannot_come_before_its_context_is_computed() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=4)
    scheduler.submit("a", [1])
    scheduler.plan()
    with pytest.raises(ValueError, match="before its context"):
        scheduler.append("a", 2)


class Traffic(RuleBasedStateMachine):
    """Requests come, are cancelled anywhere, and are computed by a model memory kept beside the scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(slots=3, queue=4, n_batch=5)
        self.number = 0
        self.waiting: list[str] = []
        self.running: dict[str, int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.memory: dict[int, list[int]] = {}

    @rule(length=st.integers(1, 12))
    def submit(self, length: int) -> None:
        self.number += 1
        key = str(self.number)
        prompt = [self.number * 1000 + index for index in range(length)]
        if len(self.waiting) + len(self.running) >= 7:
            with pytest.raises(QueueFull):
                self.scheduler.submit(key, prompt)
            return
        self.scheduler.submit(key, prompt)
        self.waiting.append(key)
        self.tokens[key] = prompt

    @precondition(lambda self: self.waiting or self.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from([*self.waiting, *self.running])))

    @rule()
    def interrupted_step(self) -> None:
        plan = self._plan()
        for span in plan.spans:
            assert len(self.memory[span.slot]) == span.start

    @rule(data=st.data())
    def interrupted_step_on_a_model_that_cannot_forget_a_part(self, data: st.DataObject) -> None:
        plan = self._plan()
        for span in plan.spans:
            if data.draw(st.booleans()):
                self.memory[span.slot].clear()
                self.scheduler.rewind(span.key)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        plan = self._plan()
        for row, (token, pos, seq, logits) in enumerate(plan.batch):
            assert pos == len(self.memory[seq])
            self.memory[seq].append(token)
            assert logits == (row in [span.row for span in plan.spans])
        for key in [key for key in self.running if data.draw(st.booleans(), label="cancelled meanwhile")]:
            self._remove(key)
        self.scheduler.commit(plan)
        for span in plan.spans:
            if span.row is not None and span.key in self.running:
                assert self.memory[span.slot] == self.tokens[span.key]
                token = int(span.key) * 1000 + len(self.tokens[span.key])
                self.tokens[span.key].append(token)
                self.scheduler.append(span.key, token)

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.running == len(self.running) <= 3
        assert self.scheduler.waiting == len(self.waiting)

    def _plan(self) -> Plan:
        free = 3 - len(self.running)
        plan = self.scheduler.plan()
        assert [key for key, _ in plan.seated] == self.waiting[:free]
        for key, slot in plan.seated:
            assert slot not in self.running.values()
            self.waiting.remove(key)
            self.running[key] = slot
            self.memory[slot] = []
        assert len(plan.batch) <= 5
        assert bool(plan.batch) == bool(self.running)
        assert sum(span.count for span in plan.spans) == len(plan.batch)
        assert len({span.slot for span in plan.spans}) == len(plan.spans)
        assert all(self.running[span.key] == span.slot for span in plan.spans)
        return plan

    def _remove(self, key: str) -> None:
        assert self.scheduler.remove(key) == self.running.pop(key, None)
        self.waiting = [other for other in self.waiting if other != key]
        assert self.scheduler.entry(key) is None


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
