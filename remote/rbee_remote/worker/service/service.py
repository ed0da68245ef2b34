"""The worker, seen from the event loop: who may come in, and when it ends.

Rules
- Everything here runs on the event loop's thread.
- A request is refused before anything of it is kept, or it gets a journal that ends with `done` or `error`.
- The clock of a request's deadline starts when it comes in, and ends it wherever it is by then.
- Once stopping, nobody comes in, and the worker ends when the last open request has ended.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rbee_remote.protocol import (
    Done,
    ErrorCode,
    GenerateRequest,
    RemoteError,
    Served,
    Usage,
    Work,
    WorkerConfig,
    WorkerStatus,
    WorkerTimings,
)
from rbee_remote.protocol.abilities import CHAT, COMPLETIONS
from rbee_remote.system.caller import ANYBODY, Caller
from rbee_remote.worker.compute.batching import QueueFull
from rbee_remote.worker.compute.loop import EngineThread
from rbee_remote.worker.engine.interface import Engine, LoadedModel, LoadEngine
from rbee_remote.worker.requests import prompt
from rbee_remote.worker.requests.adapters import scales_of
from rbee_remote.worker.requests.generation import Generation
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.journals import Journals
from rbee_remote.worker.requests.prompt import Prompt
from rbee_remote.worker.requests.tracking import Tracking, check_tokens
from rbee_remote.worker.service.keep_alive import KeepAlive
from rbee_remote.worker.service.leases import Leases
from rbee_remote.worker.service.metrics import Metrics
from rbee_remote.worker.service.news import News
from rbee_remote.worker.service.prompts import Prompts
from rbee_remote.worker.service.state import State
from rbee_remote.worker.service.texts import Texts

#: Seconds between two lines to the hive while requests run: how many tokens there are by then.
WORK_INTERVAL_S = 1.0
#: Most seconds after which a client that found no room is told to come again.
MAX_RETRY_AFTER_S = 30

_log = logging.getLogger("rbee.worker")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Preparing:
    """A request whose prompt is being made."""

    journal: Journal
    background: bool


class Service:
    """report: as in `State`.

    state: what it says of itself. journals: of the requests that are open, and of those that ended a short while ago.
    keep_alive: its clock when idle. texts: to embed or to rank. news: for those who follow it.
    """

    def __init__(self, config: WorkerConfig, load: LoadEngine, report: Callable[[WorkerStatus], None]) -> None:
        self.config = config
        self.journals = Journals(self._end)
        self.metrics = Metrics()
        self._loop = asyncio.get_running_loop()
        self._engine = EngineThread(config, load, self, self._loop.call_soon_threadsafe)
        self._preparing: dict[str, _Preparing] = {}
        self._prompts = Prompts(config.home, self._engine.prepare)
        self._early: set[asyncio.Task[None]] = set()  # make the prompts of those that came before the model
        self._typical_s = 0.0  # what a request takes in its slot, of late
        leases = Leases(config.keep_alive_s)
        leases.grant(config.keeper, config.keep_alive_s)
        self.keep_alive = KeepAlive(
            leases, stay=lambda: self.journals.unread, over=self._idle_over, changed=self._on_leases
        )
        self.state = State(config, self._counts, self.keep_alive, report, self._work, self._background)
        self._telling: asyncio.TimerHandle | None = None
        self.texts = Texts(config, self._engine, self.state, self.on_change, self._busy)
        self.news = News(self.state, config.slots, lambda: self._typical_s)
        self._ended = asyncio.Event()

    def start(self) -> None:
        self._engine.start()
        self.state.begin_load()
        self._prompts.start()

    async def wait_ended(self) -> RemoteError | None:
        """Returns when the engine's thread is over: the failure that ended it, None when it ended as planned."""
        await self._ended.wait()
        self._engine.join()
        await self._prompts.close()
        return self.state.failure

    async def submit(
        self,
        request: GenerateRequest,
        caller: Caller = ANYBODY,
        tracking: Tracking | None = None,
        digests: tuple[str, ...] = (),
    ) -> Journal:
        """Take a request in, or find the journal that it got when it came before. digests: of its prompt as it came
        (`prompt_digests`).

        Raises RemoteError: USAGE, ALL_SLOTS_BUSY, WORKER_GONE, or why the load failed.
        """
        prompt.check(request)
        scales_of(self.config.adapters, request.lora)
        if known := self.journals.same(request):
            return known
        self.state.check_open()
        others = sum(caller.background or not each.background for each in self._preparing.values())
        if others >= self.config.slots + self.config.queue:
            raise self._busy()
        journal = self.journals.open(request)
        journal.when_closed(lambda: self.metrics.ended(journal))
        if request.timeout_s is not None:
            timer = self._loop.call_later(request.timeout_s, self._end, request.request_id, "deadline")
            journal.when_closed(timer.cancel)
        try:
            with self.keep_alive.held():
                await self._enter(request, journal, caller, tracking, digests)
        except BaseException as error:
            self.journals.forget(request.request_id, journal)
            if not journal.closed:  # somebody may follow it already
                bug = RemoteError(ErrorCode.INTERNAL, f"the request was not accepted: {error!r}")
                journal.append(error if isinstance(error, RemoteError) else bug)
            raise
        journal.when_closed(lambda: self._on_done(journal))
        return journal

    async def _enter(
        self,
        request: GenerateRequest,
        journal: Journal,
        caller: Caller,
        tracking: Tracking | None,
        digests: tuple[str, ...],
    ) -> None:
        """Make the prompt and queue the request, unless it is ended meanwhile."""
        preparing = self._preparing[request.request_id] = _Preparing(journal, caller.background)
        try:
            prepared = await self._prompt(request, tracking)
        finally:
            if self._preparing.get(request.request_id) is preparing:
                del self._preparing[request.request_id]
        if journal.closed:
            return
        self.state.check_open()
        generation = Generation(request, journal, prepared, tracking, digests, background=caller.background)
        try:
            self._engine.submit(generation)
        except QueueFull as error:
            raise self._busy() from error
        if prepared is None and self.state.info:  # the load ended meanwhile
            self._prepare_early(generation)
        self.keep_alive.begin(caller.keeper, request.keep_alive_s)
        journal.when_closed(lambda: self._on_served(request.request_id, journal, caller))
        self.on_change()

    async def _prompt(self, request: GenerateRequest, tracking: Tracking | None) -> Prompt | None:
        """As `Prompts.make`, with what the answer begins with checked against it."""
        info = self.state.info
        if info is not None:
            self.state.check_able(info, CHAT if request.messages else COMPLETIONS)
        made = await self._prompts.make(request, info)
        if made is not None and info is not None and tracking is not None:
            check_tokens(tracking.tokens, made, info.n_vocab)
        return made

    def _prepare_early(self, generation: Generation) -> None:
        """Make the prompt of a request that came before the model was there; no other one waits for it."""

        async def run() -> None:
            try:
                generation.prompt = await self._prompt(generation.request, generation.tracking)
                self._engine.admit(generation)
            except QueueFull:
                self._engine.fail(generation, self._busy())
            except RemoteError as error:
                self._engine.fail(generation, error)
            self.on_change()

        task = asyncio.create_task(run())
        self._early.add(task)
        task.add_done_callback(self._early.discard)

    async def tokenize(self, text: str, *, alone: bool = False, plain: bool = False) -> list[int]:
        """A text's tokens, once the model is loaded, as of `Prompter.tokenize`. Raises RemoteError WORKER_GONE, or why
        the load failed."""
        await self.state.wait_loaded()
        return await asyncio.to_thread(self._engine.tokenize, text, alone=alone, plain=plain)

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token. Raises as `tokenize`, and RemoteError USAGE for what is no token."""
        await self.state.wait_loaded()
        return await asyncio.to_thread(self._engine.pieces, tokens)

    async def render(self, request: GenerateRequest) -> str:
        """A chat as the text that the model is given. Raises as `tokenize`, and RemoteError USAGE."""
        prompt.check(request)
        rendered = await self._prompts.render(request, await self.state.wait_able(CHAT))
        return rendered.text.replace(rendered.seam, "") if rendered.seam else rendered.text

    async def count_tokens(self, request: GenerateRequest) -> int:
        """Of a request's prompt, even where the context cannot hold it. Raises RemoteError: USAGE, WORKER_GONE, or why
        the load failed."""
        prompt.check(request)
        info = await self.state.wait_loaded()
        try:
            made = await self._prompts.make(request, info)
        except RemoteError as error:
            if isinstance(count := error.details.get("prompt_tokens"), int):
                return count
            raise
        assert made is not None
        return len(made.tokens)

    async def end_tokens(self) -> list[int]:
        """The tokens that end an answer. Raises as `tokenize` does."""
        await self.state.wait_loaded()
        return await asyncio.to_thread(self._engine.end_tokens)

    async def run_alone(self, job: Callable[[Engine], T], caller: Caller = ANYBODY) -> T:
        """Call `job` on the engine's thread while it computes nothing else; canceled, the engine is interrupted.

        Raises RemoteError IN_USE when the worker is busy, and what `job` raises.
        """
        await self.state.wait_loaded()
        running = self._engine.run_alone(job)
        with self.keep_alive.leased(caller.keeper):
            self.on_change()
            try:
                return await asyncio.wrap_future(running)
            except asyncio.CancelledError:
                self._engine.interrupt()
                raise
            finally:
                self.state.served(Served(uuid.uuid4().hex, caller.keeper, caller.who, 0, 0, "bench"))

    def cancel(self, request_id: str) -> bool:
        """False if no such request is open."""
        return self._end(request_id, "canceled")

    def stop_if_idle(self, idle_s: float, caller: Caller) -> None:
        """End the worker if nobody has used it for that long and no other keeper's lease holds it.

        Raises RemoteError IN_USE, and nothing has changed.
        """
        if self.state.is_over:
            return
        reason = "it is loading" if not self.state.is_ready else self.keep_alive.in_use(idle_s, caller.keeper)
        if reason:
            message = f"worker {self.config.id} is in use: {reason}"
            raise RemoteError(ErrorCode.IN_USE, message, details={"reason": reason})
        _log.info("idle for %g s, and told to end by keeper %s", idle_s, caller.keeper or "-")
        self.stop(drain=True)

    def grant(self, keeper: str, keep_alive_s: float) -> None:
        """Stay for a keeper that is about to come. Raises RemoteError WORKER_GONE, or why the load failed."""
        self.state.check_open()
        self.keep_alive.grant(keeper, keep_alive_s)

    def stop(self, *, drain: bool) -> None:
        """End the worker: after the open requests, or by cancelling them."""
        if self.state.stop():
            _log.info("stopping%s", ", open requests first" if drain else "")
        if not drain:
            for key in self._engine.open_requests():
                self._engine.end(key, "canceled")
            self._engine.interrupt()  # what runs alone ends too
        self.on_change()

    def on_progress(self, share: float) -> None:
        self.state.on_progress(share)

    def on_loaded(self, info: LoadedModel) -> None:
        _log.info("loaded on %s (%s)", info.device, info.backend)
        self.state.loaded(info)
        self.keep_alive.loaded()
        for generation in self._engine.early():
            self._prepare_early(generation)
        self.on_change()

    def on_change(self) -> None:
        running, waiting = self._counts()
        busy = bool(running or waiting)
        if self.state.is_stopping and not busy:
            self._engine.stop()
        self.keep_alive.set_idle(self.state.is_ready and not busy)
        self.state.publish()
        if busy and self._telling is None:
            self._telling = self._loop.call_later(WORK_INTERVAL_S, self._tell_work)

    def _work(self) -> Work:
        return self.metrics.work(self.journals.running)

    def _tell_work(self) -> None:
        self._telling = None
        self.state.tell_work()
        if any(self._counts()) and not self._ended.is_set():
            self._telling = self._loop.call_later(WORK_INTERVAL_S, self._tell_work)

    def on_memory(self, held: dict[int, tuple[str, ...]]) -> None:
        self.news.on_memory(held)

    def on_end(self, failure: RemoteError | None) -> None:
        self.state.end(failure)
        self.on_change()
        self.news.end()
        self._ended.set()
        if self._telling is not None:
            self._telling.cancel()

    def _end(self, request_id: str, reason: str, *, only_waiting: bool = False) -> bool:
        preparing = self._preparing.pop(request_id, None)
        if preparing:
            preparing.journal.append(Done(reason, Usage(0, 0), WorkerTimings(0.0, 0.0, 0.0)))
            return True
        found = self._engine.end(request_id, reason, only_waiting=only_waiting)
        if found:
            self.on_change()
        return found

    def _on_done(self, journal: Journal) -> None:
        if isinstance(journal.last, Done):
            timings = journal.last.timings
            taken = timings.prompt_s + timings.generate_s
            self._typical_s += (taken - self._typical_s) / 4 if self._typical_s else taken

    def _on_served(self, request_id: str, journal: Journal, caller: Caller) -> None:
        self.keep_alive.end(caller.keeper)
        self.state.served(journal.served(request_id, caller))

    def _on_leases(self) -> None:
        self.state.publish()

    def _idle_over(self) -> None:
        _log.info("idle for its keep-alive of %g s", self.keep_alive.leases.keep_alive_s())
        self.stop(drain=True)

    def _counts(self) -> tuple[int, int]:
        """Requests that are computed, and that wait. Of a model that computes texts alone, requests and not texts."""
        if self.state.info is None or not self.state.info.use.pooling:
            return self._engine.counts()
        count = self.texts.requests
        return (min(count, self.config.slots), max(0, count - self.config.slots)) if count else self._engine.counts()

    def _background(self) -> int:
        """Likewise, those of both that give way to others."""
        if self.state.info is None or not self.state.info.use.pooling:
            return self._engine.background()
        return self.texts.background

    def _busy(self) -> RemoteError:
        """With the seconds after which a slot should have come free."""
        running, waiting = self._counts()
        retry_after = min(MAX_RETRY_AFTER_S, max(1, math.ceil(self._typical_s / self.config.slots)))
        return RemoteError(
            ErrorCode.ALL_SLOTS_BUSY,
            f"all slots of the worker are busy: {running} running, {waiting} waiting",
            hint="try again in a while, or load the model with more --slots or on another node",
            details={"slots": self.config.slots, "running": running, "waiting": waiting, "retry_after_s": retry_after},
        )
