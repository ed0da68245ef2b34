"""How texts that are embedded or ranked share steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.worker.compute.batching import Scheduler
from rbee_remote.worker.compute.texts import TEXT_STEP, last, whole

TOKENS = st.lists(st.integers(1, 2000), min_size=1, max_size=20)


@given(TOKENS)
def test_whole_texts_fill_a_step_in_their_order(missing: list[int]) -> None:
    shares = whole(missing)
    assert len(shares) == len(missing)
    assert shares[0] == missing[0]
    assert all(share in (0, tokens) for share, tokens in zip(shares, missing, strict=True))
    assert shares == sorted(shares, key=lambda share: share == 0)
    assert sum(shares) <= max(TEXT_STEP, missing[0])
    taken = sum(share > 0 for share in shares)
    assert taken == len(missing) or sum(shares) + missing[taken] > max(TEXT_STEP, missing[0])


@given(TOKENS, st.integers(1, 512))
def test_last_tokens_have_a_step_of_their_own(missing: list[int], budget: int) -> None:
    steps, most = 0, sum(missing)
    while any(missing):
        shares = last([tokens for tokens in missing if tokens], budget)
        assert 0 < sum(shares) <= max(budget, len(missing))
        waiting = [index for index, tokens in enumerate(missing) if tokens]
        ended = [missing[index] - share == 0 for index, share in zip(waiting, shares, strict=True)]
        assert not any(ended) or all(share <= 1 for share in shares)
        for index, share in zip(waiting, shares, strict=True):
            missing[index] -= share
        steps += 1
    assert steps <= most


def test_of_the_last_tokens_alone_there_are_outputs() -> None:
    scheduler = Scheduler(3, 3, 8, texts="last")
    for key, length in (("a", 12), ("b", 3)):
        scheduler.submit(key, range(100, 100 + length), embeds=True)
    outputs, embeds = [], []
    while scheduler.running or scheduler.waiting:
        plan = scheduler.plan()
        scheduler.commit(plan)
        outputs.append([token.output for token in plan.batch])
        embeds.append(plan.embeds)
        for span in plan.spans:
            if span.row is not None:
                scheduler.remove(span.key)
    assert [any(each) for each in outputs] == embeds
    assert all(all(each) for each in outputs if any(each))
    assert sum(map(sum, outputs)) == 2


def test_a_text_that_begins_like_another_builds_on_it() -> None:
    """As the documents of a reranker do, which all come behind the same query."""
    scheduler = Scheduler(1, 3, 64, texts="last")
    scheduler.submit("a", [1, 2, 3, 4, 5], embeds=True)
    for _ in range(2):
        scheduler.commit(scheduler.plan())
    scheduler.remove("a")
    scheduler.submit("b", [1, 2, 3, 8, 9], embeds=True)
    (move,) = scheduler.plan().moves
    assert move.count == 3


def test_whole_texts_tell_of_no_memory() -> None:
    scheduler = Scheduler(2, 2, 512, texts="whole")
    for key in "ab":
        scheduler.submit(key, [1, 2, 3], embeds=True)
    plan = scheduler.plan()
    assert plan.embeds
    assert {span.key for span in plan.spans} == {"a", "b"}
    assert all(move.count == 0 for move in plan.moves)
    scheduler.commit(plan)
    assert not scheduler.has_changed
