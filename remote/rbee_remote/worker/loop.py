"""The engine's thread: loads the model, then plans, computes, samples and reports, step after step.

Rules
- The engine belongs to this thread. Others reach it through `interrupt` alone, and through `prepare`, which
  only tokenizes.
- The scheduler and the tables of requests are touched under `_lock`, which no step holds while it computes.
- Requests that have a slot are ended by this thread; those that wait, by whoever ends them. So the events of one
  request never cross.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError, WorkerConfig
from rbee_remote.worker.batching import Plan, QueueFull, Scheduler, Span
from rbee_remote.worker.generation import Generation
from rbee_remote.worker.interface import Engine, LoadAborted, LoadEngine, ModelInfo
from rbee_remote.worker.journal import Event
from rbee_remote.worker.prompt import Prompt, Prompter

#: Seconds between two reports of loading progress.
PROGRESS_INTERVAL_S = 0.1

_log = logging.getLogger("rbee.worker")


class Listener(Protocol):
    """Called on the event loop's thread."""

    def on_progress(self, share: float) -> None: ...

    def on_loaded(self, info: ModelInfo) -> None: ...

    def on_change(self) -> None:
        """A request took a slot or ended."""

    def on_end(self, failure: RemoteError | None) -> None:
        """The thread is over: as asked, or with a failure that every open request was told."""


class EngineThread:
    """post: runs a callback on the event loop's thread, in order (`call_soon_threadsafe`)."""

    def __init__(
        self, config: WorkerConfig, load: LoadEngine, listener: Listener, post: Callable[[Callable[[], None]], Any]
    ) -> None:
        self._config = config
        self._load = load
        self._listener = listener
        self._post = post
        self._lock = threading.Condition()
        self._tokenizing = threading.Lock()  # keeps the engine from being closed meanwhile; taken after _lock
        self._engine: Engine | None = None
        self._prompter: Prompter | None = None
        self._scheduler: Scheduler | None = None
        self._early: dict[str, Generation] = {}  # came while the model was loading, in order
        self._open: dict[str, Generation] = {}  # known to the scheduler
        self._ending: dict[str, str] = {}  # have a slot and are to end: key to finish_reason
        self._stopping = False
        self._closed = False
        self._reported_at = 0.0
        self._outbox: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def stop(self) -> None:
        """End the thread, the load or the step it is in included. Open requests must have been ended before."""
        with self._lock:
            self._stopping = True
            if self._engine:
                self._engine.interrupt()
            self._lock.notify()

    def counts(self) -> tuple[int, int]:
        """Requests that have a slot, and that wait."""
        with self._lock:
            if self._scheduler is None:
                return 0, len(self._early)
            return self._scheduler.running, self._scheduler.waiting

    def open_requests(self) -> list[str]:
        """Their keys."""
        with self._lock:
            return [*self._early, *self._open]

    def prepare(self, request: GenerateRequest) -> Prompt | None:
        """From any thread: the request's prompt, None while there is no model. Raises what `Prompter.prepare` does."""
        with self._tokenizing:
            return self._prompter.prepare(request) if self._prompter else None

    def submit(self, generation: Generation) -> None:
        """Queue a request, with its prompt unless the model is still loading.

        Raises QueueFull; RemoteError WORKER_GONE when the thread is over.
        """
        with self._lock:
            if self._closed:
                raise RemoteError(ErrorCode.WORKER_GONE, "the worker ended")
            if self._scheduler is None:
                if len(self._early) >= self._config.options.slots + self._config.queue:
                    raise QueueFull
                self._early[generation.key] = generation
                return
            if generation.prompt is None:  # the load ended between `prepare` and this call
                generation.prompt = self.prepare(generation.request)
            assert generation.prompt is not None
            self._scheduler.submit(generation.key, generation.prompt.tokens)
            self._open[generation.key] = generation
            self._lock.notify()

    def end(self, key: str, reason: str, *, only_waiting: bool = False) -> bool:
        """On the event loop's thread: end a request, within one step. False if there is none of that key (or none
        that waits)."""
        with self._lock:
            generation = self._early.pop(key, None)
            if generation is None and self._scheduler is not None:
                entry = self._scheduler.entry(key)
                if entry is not None and entry.slot is None:
                    self._scheduler.remove(key)
                    generation = self._open.pop(key)
                elif entry is not None and not only_waiting:
                    assert self._engine is not None
                    self._ending.setdefault(key, reason)
                    self._engine.interrupt()
                    self._lock.notify()
                    return True
        if generation is None:
            return False
        for event in generation.finish(reason):
            generation.journal.append(event)
        return True

    def _run(self) -> None:
        failure: RemoteError | None = None
        try:
            engine = self._load(self._config, self._report_progress)
            try:
                self._loop(engine, self._open_for_work(engine))
            finally:
                self._close_engine(engine)
        except LoadAborted:
            _log.info("the load was stopped")
        except RemoteError as error:
            _log.error("%s", error.message)
            failure = error
        except Exception as error:
            _log.exception("the engine failed")
            failure = RemoteError(ErrorCode.WORKER_CRASHED, f"the engine failed: {error}", hint="see the worker's log")
        self._close(failure)

    def _report_progress(self, share: float) -> bool:
        now = time.monotonic()
        if share >= 1 or now - self._reported_at >= PROGRESS_INTERVAL_S:
            self._reported_at = now
            self._post(lambda: self._listener.on_progress(share))
        return not self._stopping

    def _open_for_work(self, engine: Engine) -> Scheduler:
        """Take over the requests that came while the model was loading; those that it cannot take get their error."""
        options = self._config.options
        prompter = Prompter(engine, self._config.ctx)
        with self._lock:
            self._engine, self._prompter = engine, prompter
            self._scheduler = Scheduler(options.slots, self._config.queue, engine.n_batch)
            for generation in self._early.values():
                try:
                    generation.prompt = prompter.prepare(generation.request)
                except RemoteError as error:
                    self._emit(generation, error)
                    continue
                self._scheduler.submit(generation.key, generation.prompt.tokens)
                self._open[generation.key] = generation
            self._early.clear()
            self._outbox.append(lambda: self._listener.on_loaded(engine.info))
            self._flush()
            return self._scheduler

    def _loop(self, engine: Engine, scheduler: Scheduler) -> None:
        while True:
            with self._lock:
                while not (self._stopping or self._ending or scheduler.running or scheduler.waiting):
                    self._lock.wait()
                if self._stopping:
                    return
                engine.rearm()  # before looking at what it was about, so that none is missed
                for key, reason in self._ending.items():
                    self._finish(engine, scheduler, key, reason)
                self._ending.clear()
                plan = scheduler.plan()
                for key, slot in plan.seated:
                    self._seat(engine, self._open[key], slot)
            self._flush()
            if plan.batch:
                self._step(engine, scheduler, plan)
            self._flush()

    def _seat(self, engine: Engine, generation: Generation, slot: int) -> None:
        assert generation.prompt is not None
        engine.start(slot, generation.request.sampling, generation.seed, generation.prompt.tokens)
        self._emit(generation, generation.seat())
        self._outbox.append(self._listener.on_change)

    def _step(self, engine: Engine, scheduler: Scheduler, plan: Plan) -> None:
        whole = engine.decode(plan.batch)
        with self._lock:
            if not whole:
                _take_back(engine, scheduler, plan)
                return
            scheduler.commit(plan)
            for span in plan.spans:
                if span.row is not None:
                    self._sample(engine, scheduler, span, span.row)

    def _sample(self, engine: Engine, scheduler: Scheduler, span: Span, row: int) -> None:
        generation = self._open[span.key]
        token = engine.sample(span.slot, row)
        event = generation.advance(engine.piece(token), is_end=engine.is_end(token))
        if event is not None:
            self._emit(generation, event)
        if generation.finish_reason is None:
            scheduler.append(span.key, token)
        else:
            self._finish(engine, scheduler, span.key, generation.finish_reason)

    def _finish(self, engine: Engine, scheduler: Scheduler, key: str, reason: str) -> None:
        generation = self._open.pop(key, None)
        if generation is None:
            return  # it ended by itself in the step that its cancel interrupted
        slot = scheduler.remove(key)
        assert slot is not None
        engine.clear(slot)
        for event in generation.finish(reason):
            self._emit(generation, event)
        self._outbox.append(self._listener.on_change)

    def _close_engine(self, engine: Engine) -> None:
        with self._lock:
            self._closed = True
        with self._tokenizing:
            self._prompter = None
            engine.close()

    def _close(self, failure: RemoteError | None) -> None:
        with self._lock:
            self._closed = True
            left = [*self._early.values(), *self._open.values()]
            self._early.clear()
            self._open.clear()
            self._scheduler = None
        for generation in left:
            self._emit(generation, failure or RemoteError(ErrorCode.WORKER_GONE, "the worker ended"))
        self._outbox.append(lambda: self._listener.on_end(failure))
        self._flush()

    def _emit(self, generation: Generation, event: Event) -> None:
        """Into the outbox: a step's events cross over to the event loop in one go."""
        self._outbox.append(lambda: generation.journal.append(event))

    def _flush(self) -> None:
        if self._outbox:
            calls, self._outbox = self._outbox, []
            self._post(lambda: _call_all(calls))


def _take_back(engine: Engine, scheduler: Scheduler, plan: Plan) -> None:
    """An interrupted step may have left some of its tokens in the engine's memory; all of it is planned again."""
    for span in plan.spans:
        if not engine.forget(span.slot, span.start):
            scheduler.rewind(span.key)


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()
