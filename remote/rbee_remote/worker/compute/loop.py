"""The engine's thread: loads the model, then plans, computes, samples and reports, step after step.

Rules
- The engine belongs to this thread. Others reach it through `interrupt` alone, and through `prepare`, which
  only tokenizes. A request has its prompt made before it is queued; one that has none yet, because the model was still
  loading when it came, waits among the early ones until it is admitted.
- The scheduler and the tables of requests are touched under `_lock`, which no step holds while it computes.
- Requests that have a slot, or had one, are ended by this thread; those that wait for their first, by whoever ends
  them. So the events of one request never cross.
- Work that needs the engine for itself (`run_alone`) begins when nobody has a slot; who comes meanwhile waits.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError, WorkerConfig
from rbee_remote.system.cores import usable_cores
from rbee_remote.worker.compute.batching import QueueFull, Scheduler, make_scheduler
from rbee_remote.worker.compute.plans import Plan
from rbee_remote.worker.compute.steps import Steps, Task, endings, failing
from rbee_remote.worker.compute.threads import ThreadBudget
from rbee_remote.worker.engine.interface import Engine, LoadAborted, LoadedModel, LoadEngine
from rbee_remote.worker.requests.adapters import scales_of
from rbee_remote.worker.requests.generation import Embedding, Generation
from rbee_remote.worker.requests.prompt import Prompt, Prompter
from rbee_remote.worker.requests.tracking import is_exact
from rbee_remote.worker.templates.rendered import Rendered

#: Seconds between two reports of loading progress.
PROGRESS_INTERVAL_S = 0.1

_log = logging.getLogger("rbee.worker")

T = TypeVar("T")
Alone = tuple[Callable[[Engine], Any], "concurrent.futures.Future[Any]"]


class Listener(Protocol):
    """Called on the event loop's thread."""

    def on_progress(self, share: float) -> None: ...

    def on_loaded(self, info: LoadedModel) -> None: ...

    def on_change(self) -> None:
        """A request took a slot or ended."""

    def on_memory(self, held: dict[int, tuple[str, ...]]) -> None:
        """What slots hold is another, as `Scheduler.told` tells."""

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
        self._engine: Engine | None = None
        self._prompter: Prompter | None = None
        self._scheduler: Scheduler | None = None
        self._early: dict[str, Generation] = {}  # have no prompt yet, in the order in which they came
        self._open: dict[str, Task] = {}  # known to the scheduler
        self._alone: Alone | None = None
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
        """Requests that have a slot, and that wait. Work that needs the engine for itself counts as one that has."""
        with self._lock:
            if self._scheduler is None:
                return 0, len(self._early)
            running = self._scheduler.running + (self._alone is not None)
            return running, self._scheduler.waiting + len(self._early)

    def open_requests(self) -> list[str]:
        """Their keys."""
        with self._lock:
            return [*self._early, *self._open]

    def prepare(self, request: GenerateRequest, rendered: Rendered | None = None) -> Prompt | None:
        """From any thread: the request's prompt; None while there is no model, and for messages that were not rendered
        yet. Raises what `Prompter.prepare` does."""
        if request.messages and rendered is None:
            return None
        return self._prompter.prepare(request, rendered) if self._prompter else None

    def early(self) -> list[Generation]:
        """Those that have no prompt yet, in the order in which they came."""
        with self._lock:
            return list(self._early.values())

    def texts(self, texts: Sequence[str | Sequence[int]], most: int | None) -> list[list[int]]:
        """From any thread, once the model is loaded: as `Prompter.texts` does."""
        assert self._prompter is not None
        return self._prompter.texts(texts, most)

    def pairs(
        self, query: str, documents: Sequence[str], most: int | None, per_document: int | None
    ) -> list[list[int]]:
        """Likewise."""
        assert self._prompter is not None
        return self._prompter.pairs(query, documents, most, per_document)

    def tokenize(self, text: str, *, alone: bool = False, plain: bool = False) -> list[int]:
        """From any thread, once the model is loaded: as `Prompter.tokenize` does."""
        assert self._prompter is not None
        return self._prompter.tokenize(text, alone=alone, plain=plain)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Likewise."""
        assert self._prompter is not None
        return self._prompter.pieces(tokens)

    def end_tokens(self) -> list[int]:
        """Likewise."""
        assert self._prompter is not None
        return self._prompter.end_tokens()

    def submit(self, generation: Generation) -> None:
        """Queue a request. One that has no prompt yet waits until it is admitted with it.

        Raises QueueFull; RemoteError WORKER_GONE when the thread is over.
        """
        with self._lock:
            if self._closed:
                raise RemoteError(ErrorCode.WORKER_GONE, "the worker ended")
            if self._taken(generation.background) >= self._config.slots + self._config.queue:
                raise QueueFull
            if generation.prompt is None or self._scheduler is None:
                self._early[generation.key] = generation
                return
            self._enqueue(self._scheduler, generation)
            self._lock.notify()

    def admit(self, generation: Generation) -> None:
        """Queue an early request that has its prompt now, unless it has ended meanwhile. Raises QueueFull."""
        with self._lock:
            if self._early.pop(generation.key, None) and self._scheduler:
                self._enqueue(self._scheduler, generation)
                self._lock.notify()

    def _taken(self, background: bool) -> int:
        """Requests that have a slot or wait for one, but for those that would give way to one that is not of the
        background."""
        queued = self._scheduler.running + self._scheduler.waiting if self._scheduler else 0
        return queued + len(self._early) - (0 if background else self._background())

    def background(self) -> int:
        """Requests that have a slot or wait for one, and give way to others."""
        with self._lock:
            return self._background()

    def _background(self) -> int:
        early = sum(generation.background for generation in self._early.values())
        return early + (self._scheduler.background if self._scheduler else 0)

    def fail(self, generation: Generation, error: RemoteError) -> None:
        """On the event loop's thread: end a request that has no prompt yet with an error, unless it has ended."""
        with self._lock:
            known = self._early.pop(generation.key, None)
        if known is not None:
            failing(generation, error)()

    def submit_embedding(self, embedding: Embedding) -> None:
        """Queue a text to embed, once the model is loaded. Raises as `submit` does."""
        with self._lock:
            if self._closed or self._scheduler is None:
                raise RemoteError(ErrorCode.WORKER_GONE, "the worker ended")
            self._scheduler.submit(
                embedding.key,
                embedding.tokens,
                embeds=True,
                scales=embedding.scales,
                background=embedding.background,
            )
            self._open[embedding.key] = embedding
            self._lock.notify()

    def run_alone(self, job: Callable[[Engine], T]) -> concurrent.futures.Future[T]:
        """Have the engine's thread call `job` while it computes nothing else. The engine's memory is lost.

        Raises RemoteError IN_USE unless the model is loaded and nobody uses it.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            if self._scheduler is None or self._closed:
                raise RemoteError(ErrorCode.IN_USE, "the model is not loaded yet")
            if self._alone or self._open:
                raise RemoteError(ErrorCode.IN_USE, "the worker is busy", hint="try again when it is idle")
            self._alone = job, future
            self._lock.notify()
        return future

    def interrupt(self) -> None:
        """Cut the running step short; what it would have computed is planned again."""
        with self._lock:
            if self._engine:
                self._engine.interrupt()

    def end(self, key: str, reason: str, *, only_waiting: bool = False) -> bool:
        """On the event loop's thread: end a request, within one step. False if there is none of that key (or none
        that waits)."""
        with self._lock:
            generation: Task | None = self._early.pop(key, None)
            if generation is None and self._scheduler is not None:
                entry = self._scheduler.entry(key)
                if entry is not None and entry.slot is None and not entry.unseated:
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
        for call in endings(generation, reason):
            call()
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
        """From now on requests are queued; those that came while the model was loading get
        their prompts from the listener."""
        prompter = Prompter(engine, self._config.ctx)
        with self._lock:
            self._engine, self._prompter = engine, prompter
            self._scheduler = make_scheduler(engine, self._config.slots, self._config.queue)
            self._outbox.append(lambda: self._listener.on_loaded(engine.info))
            self._flush()
            return self._scheduler

    def _enqueue(self, scheduler: Scheduler, generation: Generation) -> None:
        """A request with a seed computes all of its prompt itself: tokens that were computed in other company differ in
        their last bits, and the same seed is to give the same text. For that reason an answer that goes on here is
        computed a token at a time, as it was elsewhere."""
        assert generation.prompt is not None
        prompt, sampling, tracking = generation.prompt.tokens, generation.request.sampling, generation.tracking
        reuse, digests = sampling.seed is None, generation.digests
        scales = scales_of(self._config.adapters, generation.request.lora)
        chosen = tracking.tokens if tracking else ()
        scheduler.submit(
            generation.key,
            (*prompt, *chosen),
            reuse=reuse,
            at_once=len(prompt) if chosen and is_exact(sampling) else None,
            digests=digests,
            scales=scales,
            background=generation.background,
            exact=is_exact(sampling),
        )
        self._open[generation.key] = generation

    def _loop(self, engine: Engine, scheduler: Scheduler) -> None:
        thread_budget = ThreadBudget.of_this_machine(self._config.options.threads or usable_cores())
        steps = Steps(engine, scheduler, self._open, self._outbox.append, self._listener.on_change, thread_budget)
        try:
            self._step_on(engine, scheduler, steps)
        finally:
            steps.close()

    def _step_on(self, engine: Engine, scheduler: Scheduler, steps: Steps) -> None:
        while True:
            with self._lock:
                while not (self._stopping or self._ending or self._alone or scheduler.running or scheduler.waiting):
                    steps.pause()
                    self._lock.wait()
                if self._stopping:
                    return
                engine.rearm()  # before looking at what it was about, so that none is missed
                for key, reason in self._ending.items():
                    steps.finish(key, reason)
                self._ending.clear()
                alone = None if scheduler.running else self._alone
                plan = Plan() if alone else steps.plan()
                self._tell_memory(scheduler, steps)
            self._flush()
            if alone:
                steps.use_all_threads()
                self._run_alone(engine, scheduler, alone)
            elif plan.batch:
                whole = steps.compute(plan)
                with self._lock:
                    if whole:
                        steps.take(plan)
                    else:
                        steps.take_back(plan)
            with self._lock:
                self._tell_memory(scheduler, steps)
            self._flush()

    def _tell_memory(self, scheduler: Scheduler, steps: Steps) -> None:
        if scheduler.has_changed:
            held = steps.held()
            self._outbox.append(lambda: self._listener.on_memory(held))

    def _run_alone(self, engine: Engine, scheduler: Scheduler, alone: Alone) -> None:
        job, future = alone
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job(engine))
            except Exception as error:  # whoever asked for the job gets its error
                future.set_exception(error)
        with self._lock:
            self._alone = None
            scheduler.forget()
            self._outbox.append(self._listener.on_change)

    def _close_engine(self, engine: Engine) -> None:
        with self._lock:
            self._closed = True
        if self._prompter:
            self._prompter.close()
        engine.close()

    def _close(self, failure: RemoteError | None) -> None:
        with self._lock:
            self._closed = True
            left = [*self._early.values(), *self._open.values()]
            alone, self._alone = self._alone, None
            self._early.clear()
            self._open.clear()
            self._scheduler = None
        error = failure or RemoteError(ErrorCode.WORKER_GONE, "the worker ended")
        for task in left:
            self._outbox.append(failing(task, error))
        if alone and not alone[1].done():
            alone[1].set_exception(error)
        self._outbox.append(lambda: self._listener.on_end(failure))
        self._flush()

    def _flush(self) -> None:
        """A step's events cross over to the event loop in one go."""
        if self._outbox:
            calls = self._outbox.copy()
            self._outbox.clear()
            self._post(lambda: _call_all(calls))


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()
