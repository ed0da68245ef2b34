"""The scheduler against random arrivals, cancels and interruptions: nothing lost, nothing twice, nobody overtaken, and
nothing built on memory that holds something else."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee_remote.protocol.prompt_digest import GAP
from rbee_remote.worker.compute.batching import QueueFull, Scheduler
from rbee_remote.worker.compute.plans import EMBEDDED_AT_ONCE, Plan
from rbee_remote.worker.compute.prefill import LEAST
from rbee_remote.worker.compute.prefix import LEAST_COPIED, Move


def test_prompts_are_computed_in_chunks_and_only_the_last_token_has_an_output() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=4)
    scheduler.submit("a", range(6))
    first = scheduler.plan()
    assert [(token, pos, output) for token, pos, _, output in first.batch] == [(n, n, False) for n in range(4)]
    assert first.moves == (Move("a", 0, 0, 0),)
    assert first.spans[0].row is None
    scheduler.commit(first)
    second = scheduler.plan()
    assert [(token, pos, output) for token, pos, _, output in second.batch] == [(4, 4, False), (5, 5, True)]
    assert second.spans[0].row == 1
    assert second.moves == ()


def test_decoding_goes_before_prefill_in_the_same_step() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=4)
    scheduler.submit("talks", [1])
    scheduler.commit(scheduler.plan())
    scheduler.append("talks", 2)
    scheduler.submit("reads", range(10))
    plan = scheduler.plan()
    assert [(span.key, span.count) for span in plan.spans] == [("talks", 1), ("reads", 3)]


def test_what_is_not_to_be_computed_at_once_is_decoded() -> None:
    """Beside others, and with an output after the last token alone."""
    scheduler = Scheduler(slots=2, queue=0, n_batch=16)
    scheduler.submit("a", range(6), at_once=3)
    scheduler.submit("b", range(100, 120))
    steps = []
    for _ in range(4):
        plan = scheduler.plan(prefill=4)
        steps.append([(span.key, span.count, span.row) for span in plan.spans])
        scheduler.commit(plan)
    assert steps == [
        [("a", 3, None), ("b", 13, None)],
        [("a", 1, None), ("b", 4, None)],
        [("a", 1, None), ("b", 3, 3)],
        [("a", 1, 0)],
    ]


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


def finish(scheduler: Scheduler, key: str) -> None:
    """Compute all of a request's prompt, and end it."""
    entry = scheduler.entry(key)
    assert entry is not None
    while entry.missing:
        scheduler.commit(scheduler.plan())
    scheduler.remove(key)


LONG = range(4 * LEAST_COPIED)


def test_while_somebody_decodes_a_prompt_gets_a_bounded_part_of_the_step() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=64)
    scheduler.submit("talks", [1])
    scheduler.commit(scheduler.plan(prefill=8))
    scheduler.append("talks", 2)
    scheduler.submit("reads", range(100, 140))
    assert [span.count for span in scheduler.plan(prefill=8).spans] == [1, 8]
    scheduler.remove("talks")
    assert [span.count for span in scheduler.plan(prefill=8).spans] == [40]


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one_before_it() -> None:
    scheduler = Scheduler(slots=3, queue=0, n_batch=16)
    for number, length in enumerate((100, 100, 3)):
        scheduler.submit(str(number), range(1000 * number, 1000 * number + length))
    assert [(span.key, span.count) for span in scheduler.plan().spans] == [("0", 9), ("1", 4), ("2", 3)]


def test_the_next_turn_of_a_chat_computes_only_what_is_new() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=512)
    scheduler.submit("first", LONG)
    finish(scheduler, "first")
    scheduler.submit("second", [*LONG, 900, 901])
    plan = scheduler.plan()
    assert plan.moves == (Move("second", 0, 0, len(LONG)),)
    assert [token.token for token in plan.batch] == [900, 901]


def test_the_last_token_of_a_prompt_is_computed_even_if_it_was_before() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=512)
    for key in ("first", "again"):
        scheduler.submit(key, LONG)
        plan = scheduler.plan()
        finish(scheduler, key)
    assert len(plan.batch) == 1
    assert plan.spans[0].row == 0


def test_what_another_conversation_needs_is_copied_and_left_where_it_is() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=512)
    scheduler.submit("first", [*LONG, *range(500, 700)])
    finish(scheduler, "first")
    scheduler.submit("other", [*LONG, 900])
    assert scheduler.plan().moves == (Move("other", 0, 1, len(LONG)),)


def test_a_common_start_too_short_to_be_worth_a_copy_is_computed_again() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=512)
    start = range(LEAST_COPIED - 1)
    scheduler.submit("first", [*start, *range(500, 700)])
    finish(scheduler, "first")
    scheduler.submit("other", [*start, 900])
    assert scheduler.plan().moves == (Move("other", 1, 1, 0),)


def test_requests_that_come_at_once_compute_their_common_start_once() -> None:
    scheduler = Scheduler(slots=3, queue=0, n_batch=512)
    for key in (1, 2, 3):
        scheduler.submit(str(key), [*LONG, 1000 + key])
    first = scheduler.plan()
    assert [(span.key, span.count) for span in first.spans] == [("1", len(LONG) + 1)]
    scheduler.commit(first)
    second = scheduler.plan()
    assert second.moves == (Move("2", 0, 1, len(LONG)), Move("3", 0, 2, len(LONG)))
    assert [token.token for token in second.batch] == [1002, 1003]


def test_who_waited_for_anothers_prompt_computes_it_when_that_one_is_canceled() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=8)
    scheduler.submit("leads", LONG)
    scheduler.submit("follows", [*LONG, 900])
    scheduler.commit(scheduler.plan())
    scheduler.remove("leads")
    plan = scheduler.plan()
    assert [span.key for span in plan.spans] == ["follows"]


def test_nobody_waits_for_a_memory_that_cannot_be_shared() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=512, shares=False)
    scheduler.submit("1", LONG)
    scheduler.submit("2", LONG)
    assert [span.key for span in scheduler.plan().spans] == ["1", "2"]


def test_a_request_that_may_not_reuse_computes_everything() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=512)
    scheduler.submit("first", LONG)
    finish(scheduler, "first")
    scheduler.submit("seeded", LONG, reuse=False)
    assert scheduler.plan().moves == (Move("seeded", 0, 0, 0),)


def test_the_slot_whose_use_lies_longest_back_is_overwritten() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=512)
    for number in (1, 2):
        scheduler.submit(str(number), range(1000 * number, 1000 * number + 50))
    for key in ("2", "1"):
        finish(scheduler, key)
    scheduler.submit("3", range(50))
    assert scheduler.plan().moves == (Move("3", 1, 1, 0),)


def test_what_the_memory_cannot_go_back_to_is_computed_again() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=512)
    scheduler.submit("first", LONG)
    finish(scheduler, "first")
    scheduler.submit("second", [*LONG, 900])
    assert scheduler.plan(reusable=lambda slot, count: 0).moves == (Move("second", 0, 0, 0),)


def test_a_text_to_embed_has_an_output_for_each_token_and_takes_little_of_a_step() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=512)
    scheduler.submit("text", range(EMBEDDED_AT_ONCE + 1), embeds=True)
    plan = scheduler.plan()
    assert plan.embeds
    assert [token.output for token in plan.batch] == [True] * EMBEDDED_AT_ONCE


def test_texts_to_embed_and_prompts_take_turns_and_who_decodes_is_in_each_step() -> None:
    """A step that embeds has an output for each of its tokens, and room for few."""
    scheduler = Scheduler(slots=3, queue=0, n_batch=512)
    scheduler.submit("decodes", [1])
    scheduler.submit("text", range(200, 200 + 2 * EMBEDDED_AT_ONCE), embeds=True)
    scheduler.submit("prompt", range(900, 1500), reuse=False)
    steps = []
    for _ in range(4):
        plan = scheduler.plan()
        assert not plan.embeds or all(token.output for token in plan.batch)
        steps.append([span.key for span in plan.spans])
        scheduler.commit(plan)
        scheduler.append("decodes", 2)
        if scheduler.entry("text") and not scheduler.entry("text").missing:  # type: ignore[union-attr]
            scheduler.remove("text")
    assert steps == [["decodes", "text"], ["decodes", "prompt"], ["decodes", "text"], ["decodes", "prompt"]]


def test_a_slot_that_gets_a_copy_is_no_source_before_the_engine_has_made_it() -> None:
    """What the engine says of a slot's memory is about what it holds now."""
    scheduler = Scheduler(slots=3, queue=0, n_batch=512)
    for key, prompt in (("trunk", [*LONG, 901]), ("second", [77]), ("third", [78])):
        scheduler.submit(key, prompt)
    finish(scheduler, "second")
    scheduler.remove("third")
    held = {0: len(LONG) + 1, 1: 1, 2: 0}
    for key in ("a", "b"):
        scheduler.submit(key, [*LONG, 1000 + ord(key)])
    plan = scheduler.plan(reusable=lambda slot, count: count if held[slot] >= count else 0)
    assert [(move.source, move.count) for move in plan.moves] == [(0, len(LONG))] * 2


DIGESTS = ("a", "b", "c", "d")


def everything(slot: int, count: int) -> int:
    return count


def test_a_slot_tells_a_prompt_once_it_is_computed_and_keeps_telling_it_when_the_request_is_over() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=6)
    scheduler.submit("a", range(8), digests=DIGESTS)
    scheduler.commit(scheduler.plan())
    assert scheduler.told(everything) == {0: ("a", "b", "c")}
    scheduler.commit(scheduler.plan())
    assert scheduler.told(everything) == {0: DIGESTS}
    scheduler.append("a", 8)
    scheduler.commit(scheduler.plan())
    assert scheduler.told(everything) == {}
    scheduler.remove("a")
    assert scheduler.told(everything) == {0: DIGESTS}


def test_a_request_that_was_ended_in_its_prompt_leaves_its_share_of_the_digests() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=3)
    scheduler.submit("a", range(8), digests=DIGESTS)
    scheduler.commit(scheduler.plan())
    scheduler.remove("a")
    assert scheduler.told(everything) == {0: ("a",)}


def test_what_takes_a_slot_without_digests_leaves_none_of_those_before() -> None:
    """A text to embed, or a prompt that came as no JSON body."""
    scheduler = Scheduler(slots=1, queue=0, n_batch=64)
    for embeds in (True, False):
        scheduler.submit("a", LONG, digests=DIGESTS)
        finish(scheduler, "a")
        assert scheduler.told(everything) == {0: DIGESTS}
        scheduler.submit("b", range(900, 903), embeds=embeds)
        finish(scheduler, "b")
        assert scheduler.told(everything) == {0: ()}


def test_a_copy_is_told_of_its_slot_too_and_a_memory_that_was_lost_of_none() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=512)
    scheduler.submit("first", [*LONG, *range(500, 700)], digests=DIGESTS)
    finish(scheduler, "first")
    scheduler.told(everything)
    scheduler.submit("other", [*LONG, 900], digests=("a", "x"))
    scheduler.plan()
    assert scheduler.told(everything) == {1: ("a",)}  # all but the last token came with the copy
    scheduler.rewind("other")
    assert scheduler.told(everything) == {1: ()}
    scheduler.remove("other")
    scheduler.forget()
    assert scheduler.told(everything) == {0: (), 1: ()}


def test_a_sliding_window_tells_only_where_its_memory_can_be_built_on() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=512, forgets=True)
    scheduler.submit("a", range(8), digests=DIGESTS)
    scheduler.commit(scheduler.plan())
    assert scheduler.told(everything) == {0: ()}  # it goes on, and the window with it
    scheduler.remove("a")
    assert scheduler.told(lambda slot, count: count if count >= 6 else 0) == {0: (GAP, GAP, "c", "d")}


def test_a_recurrent_memory_is_good_for_who_goes_on_from_its_end() -> None:
    scheduler = Scheduler(slots=1, queue=0, n_batch=512, shares=False, forgets=True)
    scheduler.submit("a", range(8), digests=DIGESTS)
    finish(scheduler, "a")
    assert scheduler.told(lambda slot, count: 0) == {0: (GAP, GAP, GAP, "d")}


class Traffic(RuleBasedStateMachine):
    """Requests come, are cancelled anywhere, and are computed by a model memory kept beside the scheduler.

    Their prompts begin alike more often than not, and the memory can lose a sequence. What is told of a slot is true at
    every moment, also where nothing was told of it for long.
    """

    SLOTS, QUEUE, N_BATCH = 3, 4, 24
    #: Tokens at the end of a sequence of which the memory keeps all; None for all that there are.
    WINDOW: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.SLOTS, self.QUEUE, self.N_BATCH, forgets=self.WINDOW is not None)
        self.told: dict[int, tuple[str, ...]] = dict.fromkeys(range(self.SLOTS), ())
        self.covers: dict[str, list[int]] = {}  # a digest to the tokens that it stands for
        self.lost = [0] * self.SLOTS  # tokens at the start of each slot's memory that are lost
        self.number = 0
        self.waiting: list[str] = []
        self.seated: list[str] = []
        self.tokens: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self.reuse: dict[str, bool] = {}
        self.at_once: dict[str, int | None] = {}
        self.background: dict[str, bool] = {}
        self.exact: set[str] = set()
        self.begun: dict[str, int] = {}  # key to slot
        self.memory: dict[int, list[int]] = {slot: [] for slot in range(self.SLOTS)}

    @rule(
        start=st.integers(0, 2),
        common=st.integers(0, 60),
        own=st.integers(1, 40),
        reuse=st.booleans(),
        apart=st.none() | st.integers(0, 20),
        background=st.booleans(),
    )
    def submit(self, start: int, common: int, own: int, reuse: bool, apart: int | None, background: bool) -> None:
        """apart: how many of the last tokens are not to be computed at once."""
        self.number += 1
        key = str(self.number)
        prompt = [100 * start + index for index in range(common)]
        prompt += [self.number * 1000 + index for index in range(own)]
        counted = [key for key in (*self.waiting, *self.seated) if background or not self.background[key]]
        if len(counted) >= self.SLOTS + self.QUEUE:
            with pytest.raises(QueueFull):
                self.scheduler.submit(key, prompt, background=background)
            return
        at_once = None if apart is None else max(1, len(prompt) - apart)
        digests = self._digests(prompt[:at_once])  # what is known behind it is an answer's
        exact = not reuse
        self.scheduler.submit(
            key, prompt, reuse=reuse, at_once=at_once, digests=digests, background=background, exact=exact
        )
        self.at_once[key] = at_once
        self.background[key] = background
        self.exact |= {key} if exact else set()
        self._wait(key)
        self.tokens[key] = prompt
        self.prompts[key] = len(prompt[:at_once])
        self.reuse[key] = reuse

    @precondition(lambda self: self.waiting or self.seated)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from([*self.waiting, *self.seated])))

    @rule()
    def interrupted_step(self) -> None:
        for span in self._plan().spans:
            assert len(self.memory[span.slot]) == span.start

    @rule(data=st.data())
    def interrupted_step_on_a_model_that_cannot_forget_a_part(self, data: st.DataObject) -> None:
        for span in self._plan().spans:
            if data.draw(st.booleans()):
                self.memory[span.slot].clear()
                self.lost[span.slot] = 0
                self.scheduler.rewind(span.key)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        plan = self._plan(prefill=data.draw(st.none() | st.integers(1, 30)))
        self._compute(plan)
        for key in [key for key in self.seated if data.draw(st.booleans(), label="cancelled meanwhile")]:
            self._remove(key)
        self._take(plan)

    @invariant()
    def counts_agree(self) -> None:
        assert self.scheduler.running == len(self.seated) <= self.SLOTS
        assert self.scheduler.waiting == len(self.waiting)

    @invariant()
    def what_is_told_of_a_slot_can_be_built_on(self) -> None:
        self.told.update(self.scheduler.told(self._reusable))
        assert not self.scheduler.has_changed
        running = {slot: key for key, slot in self.begun.items()}
        for slot, digests in self.told.items():
            memory = self.memory[slot]
            for place, digest in enumerate(digests, 1):
                if digest != GAP:
                    covered = self.covers[digest]
                    assert memory[: len(covered)] == covered
                    # The last one of an ended request is for who goes on behind its answer.
                    goes_on = place == len(digests) and slot not in running
                    most = len(memory) if goes_on else min(len(memory), len(covered) + 7)
                    assert any(self._reusable(slot, count) for count in range(len(covered), most + 1))
            if self.WINDOW is None:
                assert GAP not in digests
                prompt = self.tokens[running[slot]][: self.prompts[running[slot]]] if slot in running else []
                if memory[: len(prompt)] == prompt and prompt:
                    assert digests == self._digests(prompt)

    def teardown(self) -> None:
        """Nobody starves: without new arrivals, each request gets its first token, in no more steps than there are
        tokens."""
        left = {*self.waiting, *self.seated}
        steps = sum(len(self.tokens[key]) for key in left)
        while left:
            plan = self._plan(prefill=3)
            self._compute(plan)
            done = [span.key for span in plan.spans if span.row is not None]
            self._take(plan)
            for key in done:
                self._remove(key)
                left.discard(key)
            steps -= 1
            assert steps >= 0
        assert self.scheduler.running == self.scheduler.waiting == 0

    def _plan(self, prefill: int | None = None) -> Plan:
        able = [key for key in self.seated if self.background[key]]
        wait = sum(not self.background[key] for key in self.waiting) - (self.SLOTS - len(self.seated))
        plan = self.scheduler.plan(prefill=prefill, reusable=self._reusable)
        assert len(plan.unseated) == max(0, min(wait, len(able)))
        for key, slot in plan.unseated:
            assert key in able
            assert self.begun.pop(key, slot) == slot
            self.seated.remove(key)
            self._wait(key)
            if key in self.exact:
                self.at_once[key] = self.prompts[key]
        free = self.SLOTS - len(self.seated)
        self.seated += self.waiting[:free]
        del self.waiting[:free]
        for move in plan.moves:
            assert move.key in self.seated
            assert move.slot not in self.begun.values()
            assert self.reuse[move.key] or not move.count
            self.memory[move.slot] = self.memory[move.source][: move.count]
            self.lost[move.slot] = self.lost[move.source] if move.count else 0
            assert self.memory[move.slot] == self.tokens[move.key][: move.count]
            assert move.count < len(self.tokens[move.key])
            self.begun[move.key] = move.slot
        assert len(plan.batch) <= self.N_BATCH
        assert bool(plan.batch) == bool(self.seated)
        assert sum(span.count for span in plan.spans) == len(plan.batch)
        assert len({span.slot for span in plan.spans}) == len(plan.spans)
        for span in plan.spans:
            at_once = self.at_once[span.key]
            assert span.count == 1 or at_once is None or span.start + span.count <= at_once
        assert all(self.begun[span.key] == span.slot for span in plan.spans)
        return plan

    def _wait(self, key: str) -> None:
        self.waiting = sorted([*self.waiting, key], key=lambda each: (self.background[each], int(each)))

    def _compute(self, plan: Plan) -> None:
        for row, (token, pos, seq, output) in enumerate(plan.batch):
            assert pos == len(self.memory[seq])
            self.memory[seq].append(token)
            if self.WINDOW is not None:
                self.lost[seq] = max(self.lost[seq], len(self.memory[seq]) - self.WINDOW)
            assert output == (row in [span.row for span in plan.spans])

    def _take(self, plan: Plan) -> None:
        self.scheduler.commit(plan)
        for span in plan.spans:
            if span.row is not None and span.key in self.begun:
                assert self.memory[span.slot] == self.tokens[span.key]
                token = int(span.key) * 1000 + len(self.tokens[span.key])
                self.tokens[span.key].append(token)
                self.scheduler.append(span.key, token)

    def _remove(self, key: str) -> None:
        slot = self.scheduler.remove(key)
        assert (slot is not None) == (key in self.seated)
        assert self.begun.pop(key, slot) == slot
        self.seated = [other for other in self.seated if other != key]
        self.waiting = [other for other in self.waiting if other != key]
        assert self.scheduler.entry(key) is None

    def _reusable(self, slot: int, count: int) -> int:
        assert count <= len(self.memory[slot])
        needed_from = 0 if self.WINDOW is None else max(0, count - self.WINDOW)
        return count if self.lost[slot] <= needed_from else 0

    def _digests(self, prompt: list[int]) -> tuple[str, ...]:
        """Of each eight tokens one, which covers all before it."""
        starts = [prompt[:end] for end in range(8, len(prompt) + 1, 8)]
        digests = tuple(json.dumps(start) for start in starts)
        self.covers.update(zip(digests, starts, strict=True))
        return digests


class ForgetfulTraffic(Traffic):
    """The same for a model with a sliding window."""

    WINDOW = 20


TestForgetfulTraffic = ForgetfulTraffic.TestCase
TestForgetfulTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


HALF, WHOLE = (0.5,), (1.0,)


def test_a_step_holds_requests_of_one_scale_and_each_scale_has_its_turn() -> None:
    scheduler = Scheduler(slots=3, queue=0, n_batch=64)
    for key, scales in (("a", HALF), ("b", WHOLE), ("c", HALF)):
        scheduler.submit(key, [ord(key)], scales=scales)
    seen = []
    for _ in range(4):
        plan = scheduler.plan()
        seen.append((plan.scales, [span.key for span in plan.spans]))
        scheduler.commit(plan)
        for span in plan.spans:
            scheduler.append(span.key, 5)
    assert seen == [(HALF, ["a", "c"]), (WHOLE, ["b"])] * 2


def test_a_long_prompt_of_one_scale_does_not_delay_the_tokens_of_another_by_more() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=64)
    scheduler.submit("talks", [1], scales=WHOLE)
    scheduler.commit(scheduler.plan())
    scheduler.append("talks", 2)
    scheduler.submit("reads", range(100, 140), scales=HALF)
    counts = []
    for _ in range(4):
        plan = scheduler.plan(prefill=8)
        counts.append([(span.key, span.count) for span in plan.spans])
        scheduler.commit(plan)
        if plan.spans[0].key == "talks":
            scheduler.append("talks", 3)
    assert counts == [[("talks", 1)], [("reads", 8)]] * 2


def test_what_was_computed_by_another_scale_is_neither_reused_copied_nor_waited_for() -> None:
    scheduler = Scheduler(slots=3, queue=0, n_batch=512)
    scheduler.submit("left", LONG, scales=WHOLE)
    finish(scheduler, "left")
    scheduler.submit("other", [*LONG, 900], scales=HALF)
    plan = scheduler.plan()
    assert [(move.slot, move.count) for move in plan.moves] == [(1, 0)]
    scheduler.submit("third", [*LONG, 901], scales=())  # while the one before computes the same tokens
    plan = scheduler.plan()
    assert [(move.key, move.count) for move in plan.moves] == [("third", 0)]
    scheduler.remove("other")
    scheduler.remove("third")
    scheduler.submit("again", [*LONG, 900], scales=WHOLE)
    assert [(move.source, move.count) for move in scheduler.plan().moves] == [(0, len(LONG))]


def test_the_background_waits_behind_all_others_and_leaves_its_slots_to_them() -> None:
    scheduler = Scheduler(slots=2, queue=2, n_batch=64)
    for key in ("b1", "b2", "b3"):
        scheduler.submit(key, [1, 2, 3], background=True)
    scheduler.commit(scheduler.plan())
    scheduler.append("b1", 4)
    scheduler.submit("person", [7, 8])
    plan = scheduler.plan()
    assert plan.unseated == (("b2", 1),)
    assert [span.key for span in plan.spans] == ["person"]  # and the background computes nothing beside its prompt
    assert (scheduler.background, scheduler.running, scheduler.waiting) == (3, 2, 2)
    scheduler.commit(plan)
    scheduler.append("person", 9)
    assert [span.key for span in scheduler.plan().spans] == ["b1", "person"]
    scheduler.remove("person")
    assert {span.key for span in scheduler.plan().spans} == {"b1", "b2"}


def test_a_slot_that_was_given_up_is_gone_on_with_from_what_is_there() -> None:
    scheduler = Scheduler(slots=1, queue=2, n_batch=512)
    scheduler.submit("batch", LONG, background=True)
    scheduler.commit(scheduler.plan())
    scheduler.append("batch", 900)
    scheduler.submit("person", [7, 8])
    scheduler.plan()
    scheduler.remove("person")
    plan = scheduler.plan()
    assert [token.token for token in plan.batch][-1] == 900
    assert plan.moves[0].key == "batch"


def test_an_exact_answer_is_computed_again_as_it_was() -> None:
    """The prompt at once, what was chosen a token at a time."""
    scheduler = Scheduler(slots=1, queue=1, n_batch=64)
    scheduler.submit("batch", [1, 2, 3], background=True, exact=True, reuse=False)
    for token in (4, 5):
        scheduler.commit(scheduler.plan())
        scheduler.append("batch", token)
    scheduler.submit("person", [7, 8])
    finish(scheduler, "person")
    counts = []
    for _ in range(3):
        plan = scheduler.plan()
        counts.append([token.token for token in plan.batch])
        scheduler.commit(plan)
    assert counts == [[1, 2, 3], [4], [5]]


def test_prompts_of_the_background_delay_the_tokens_of_others_by_little() -> None:
    scheduler = Scheduler(slots=2, queue=0, n_batch=64)
    scheduler.submit("person", [1])
    scheduler.commit(scheduler.plan())
    scheduler.append("person", 2)
    scheduler.submit("batch", range(100, 140), background=True)
    assert [span.count for span in scheduler.plan(prefill=32).spans] == [1, LEAST]


def test_nobody_is_refused_for_the_sake_of_the_background() -> None:
    scheduler = Scheduler(slots=1, queue=1, n_batch=4)
    scheduler.submit("b1", [1], background=True)
    scheduler.submit("b2", [1], background=True)
    with pytest.raises(QueueFull):
        scheduler.submit("b3", [1], background=True)
    scheduler.submit("a", [1])
    scheduler.submit("b", [1])
    with pytest.raises(QueueFull):
        scheduler.submit("c", [1])
