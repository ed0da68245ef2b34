"""One step of the engine after another: begin what gets a slot, compute, sample, tell.

Rules
- Everything here runs on the engine's thread, and all but `compute` under its lock, because the scheduler and the
  table of open requests are touched by who submits and cancels.
- What a request's client is to hear goes through `tell`, which has it called later, on the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rbee_remote.protocol import RemoteError
from rbee_remote.worker.compute.batching import Scheduler
from rbee_remote.worker.compute.plans import Plan, Span
from rbee_remote.worker.compute.prefill import PrefillLimit
from rbee_remote.worker.compute.prefix import Move
from rbee_remote.worker.compute.replay import replay
from rbee_remote.worker.compute.threads import ThreadBudget
from rbee_remote.worker.engine.interface import Engine, Sampled, Sampler
from rbee_remote.worker.requests.generation import Embedding, Generation
from rbee_remote.worker.requests.journal import Event

Task = Generation | Embedding


class Steps:
    """open_tasks: key to each request that the scheduler knows. on_change: told when one takes a slot or ends.

    thread_budget: how many threads are worth it.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        open_tasks: dict[str, Task],
        tell: Callable[[Callable[[], None]], None],
        on_change: Callable[[], None],
        thread_budget: ThreadBudget,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._open = open_tasks
        self._tell = tell
        self._on_change = on_change
        self._prefill = PrefillLimit(engine.n_batch)
        self._thread_budget = thread_budget
        self._threads = 0  # not set yet
        self._kept: dict[str, Sampler] = {}  # of requests that gave up their slots

    def plan(self) -> Plan:
        """The next step, those that begin with it begun; an empty one where a beginning failed."""
        self._drop_left()
        plan = self._scheduler.plan(prefill=self._prefill.tokens, reusable=self._engine.reusable)
        for key, slot in plan.unseated:
            if sampler := self._engine.take_sampler(slot):
                self._kept[key] = sampler
            self._tell(self._on_change)
        begun = [self._begin(move) for move in plan.moves]
        return plan if all(begun) else Plan()

    def compute(self, plan: Plan) -> bool:
        """False when it was interrupted."""
        started = time.monotonic()
        self._use_threads(self._thread_budget.most if self._repeatable() else self._thread_budget.look(started))
        whole = self._engine.decode(plan.batch, embeddings=plan.embeds, scales=plan.scales)
        if whole:
            self._prefill.observe(len(plan.batch), time.monotonic() - started)
        return whole

    def close(self) -> None:
        """Free what requests have left that gave up their slots."""
        for sampler in self._kept.values():
            sampler.close()
        self._kept.clear()

    def _drop_left(self) -> None:
        """Of those that ended while they waited for another slot."""
        for key in self._kept.keys() - self._open.keys():
            self._kept.pop(key).close()

    def held(self) -> dict[int, tuple[str, ...]]:
        """As `Scheduler.told`."""
        return self._scheduler.told(self._engine.reusable)

    def pause(self) -> None:
        """Nothing is left to compute for now."""
        self._thread_budget.pause()

    def use_all_threads(self) -> None:
        self._use_threads(self._thread_budget.most)

    def take(self, plan: Plan) -> None:
        """Sample from a step that was computed."""
        self._scheduler.commit(plan)
        for span in plan.spans:
            task = self._open[span.key]
            if isinstance(task, Embedding):
                self._pool(span, task, embeds=plan.embeds)
            elif span.row is not None:
                self._sample(span, task, span.row)

    def take_back(self, plan: Plan) -> None:
        """An interrupted step may have left some of its tokens in the engine's memory; all of it is planned again."""
        for span in plan.spans:
            if not self._engine.truncate(span.slot, span.start):
                self._scheduler.rewind(span.key)
                task = self._open[span.key]
                if isinstance(task, Embedding):
                    task.restart()

    def finish(self, key: str, reason: str) -> None:
        """End a request that has a slot, or had one. Nothing happens to one that ended already."""
        task = self._open.pop(key, None)
        if task is None:
            return
        slot = self._scheduler.remove(key)
        if slot is not None:
            self._engine.finish(slot)
        for call in endings(task, reason):
            self._tell(call)
        self._tell(self._on_change)

    def _repeatable(self) -> bool:
        """Whether somebody's text is to depend on nothing but a seed: llama.cpp adds up attention over a long context
        in as many parts as there are threads."""
        return any(isinstance(task, Generation) and task.request.sampling.seed is not None for task in self._tasks())

    def _tasks(self) -> list[Task]:
        return list(self._open.values())

    def _use_threads(self, count: int) -> None:
        if count != self._threads:
            self._threads = count
            self._engine.set_threads(count)

    def _begin(self, move: Move) -> bool:
        """Give a request its slot's memory. False where the step cannot go on as it was planned."""
        task = self._open[move.key]
        self._tell(self._on_change)
        if move.source == move.slot:
            kept = self._engine.truncate(move.slot, move.count)
        else:
            kept = self._engine.copy(move.source, move.slot, move.count)
        if not kept:
            self._scheduler.rewind(move.key)
        if sampler := self._kept.pop(move.key, None):
            self._engine.give_sampler(move.slot, sampler)
        elif isinstance(task, Generation):
            assert task.prompt is not None
            try:
                shape = task.prompt.shape
                constraint = shape.constraint if shape is not None else None
                self._engine.start(move.slot, task.request.sampling, task.seed, task.prompt.tokens, constraint)
                events: list[Event] = [task.begin(move.count if kept else 0), *replay(self._engine, move.slot, task)]
            except RemoteError as error:
                self._engine.finish(move.slot)
                self._fail(move.key, task, error)
                return False
            for event in events:
                self._tell(_appending(task, event))
            if task.finish_reason is not None:  # another worker came as far as that
                self.finish(move.key, task.finish_reason)
                return False
        return kept

    def _fail(self, key: str, task: Task, error: RemoteError) -> None:
        """End a request that has a slot but no sampler."""
        del self._open[key]
        self._scheduler.remove(key)
        self._tell(failing(task, error))

    def _pool(self, span: Span, embedding: Embedding, *, embeds: bool) -> None:
        """Of a text whose tokens llama.cpp pools itself there is one vector, of whichever row."""
        rows = range(span.first, span.first + span.count) if embeds else range(0)
        for row in rows[-1:] if self._engine.info.use.whole else rows:
            embedding.add(self._engine.embedding(row, span.slot))
        if span.row is not None:
            self.finish(span.key, "stop")

    def _sample(self, span: Span, generation: Generation, row: int) -> None:
        try:
            if generation.forced:
                sampled = Sampled(generation.forced.popleft())
                self._engine.accept(span.slot, sampled.token)
            else:
                sampled = self._engine.sample(span.slot, row)
            token = sampled.token
            event = generation.advance(sampled, self._engine.piece(token), is_end=self._engine.is_end(token))
        except RemoteError as error:
            self._engine.finish(span.slot)
            self._fail(span.key, generation, error)
            self._tell(self._on_change)
            return
        if event is not None:
            self._tell(_appending(generation, event))
        if generation.finish_reason is None:
            self._scheduler.append(span.key, token)
        else:
            self.finish(span.key, generation.finish_reason)


def endings(task: Task, reason: str) -> list[Callable[[], None]]:
    """What tells a request's client that it is over."""
    if isinstance(task, Embedding):
        return [lambda: task.finish(reason)]
    return [_appending(task, event) for event in task.finish(reason)]


def failing(task: Task, error: RemoteError) -> Callable[[], None]:
    """What tells a request's client why there is no more of it."""
    if isinstance(task, Embedding):
        return lambda: task.fail(error)
    return _appending(task, error)


def _appending(generation: Generation, event: Event) -> Callable[[], None]:
    return lambda: generation.journal.append(event)
