"""Chats over workers, simulated in steps, to see what a rule of routing does to waiting times. Not a model of any
machine: prompts are computed at one rate, which those that begin at once share; writing slows the more write at once.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rbee.gateway.base.views import WorkerKey, WorkerView
from rbee.gateway.routing.situation import Seen, Situation
from rbee_remote.protocol.prompt_digest import common_digests
from tests.unit.gateway.views import worker_view

#: Seconds of a step. Tokens of a block, as of prompt_digests' 256 bytes.
STEP_S, BLOCK = 0.05, 64

Chain = tuple[str, ...]
#: Of workers with a free slot, the place of the one that takes a prompt.
Choose = Callable[[Sequence[WorkerView], Chain, Situation], WorkerView]


@dataclass
class Load:
    """prefill: tokens a second; decode: of one request alone; n at once write decode * n ** scaling together: 0.5 is
    like a CPU, 0.9 like a GPU. systems: how many system prompts there are. system, turn, answer: tokens. think_s:
    between an answer and the next turn."""

    chats: int = 16
    workers: int = 4
    slots: int = 4
    turns: int = 5
    prefill: float = 400.0
    decode: float = 40.0
    scaling: float = 0.6
    system: int = 640
    turn: int = 192
    answer: int = 128
    think_s: float = 6.0
    systems: int = 1


@dataclass
class _Job:
    chat: int
    prompt: Chain
    slot: int
    asked_at: float
    prefill: float
    answer: float
    first_at: float = 0.0


@dataclass
class _Worker:
    view: WorkerView
    held: list[Chain]
    used: list[float]
    jobs: list[_Job] = field(default_factory=list)
    quiet_since: float = 0.0

    def take(self, chat: int, prompt: Chain, answer: int, asked_at: float, now: float) -> None:
        """As a worker seats a request, and copies what another slot holds of it."""
        free = [slot for slot in range(len(self.held)) if all(job.slot != slot for job in self.jobs)]
        source = max(range(len(self.held)), key=lambda slot: common_digests(self.held[slot], prompt))
        common = common_digests(self.held[source], prompt)
        if not (source in free and 2 * common >= len(self.held[source]) > 0):
            slot = min(free, key=lambda each: (len(self.held[each]) > 0, self.used[each]))
        else:
            slot = source
        self.held[slot] = prompt
        self.jobs.append(_Job(chat, prompt, slot, asked_at, BLOCK * (len(prompt) - common) + 8.0, answer))

    def step(self, load: Load, now: float) -> list[_Job]:
        """Those that ended."""
        filling = [job for job in self.jobs if job.prefill > 0]
        writing = [job for job in self.jobs if job.prefill <= 0]
        share = 0.5 if filling and writing else 1.0
        for job in filling:
            job.prefill -= STEP_S * share * load.prefill / len(filling)
            if job.prefill <= 0:
                job.first_at = now + STEP_S
        for job in writing:
            job.answer -= STEP_S * share * load.decode * len(writing) ** load.scaling / len(writing)
        done = [job for job in writing if job.answer <= 0]
        for job in done:
            self.jobs.remove(job)
            self.used[job.slot] = self.quiet_since = now
        return done


@dataclass(frozen=True)
class Times:
    """Means in seconds. taken: how many requests each worker had."""

    first_s: float
    whole_s: float
    taken: tuple[int, ...]


def simulate(load: Load, choose: Choose, seed: int = 1) -> Times:
    rng = random.Random(seed)
    workers = [
        _Worker(worker_view(f"w{number}", slots=load.slots), [()] * load.slots, [0.0] * load.slots)
        for number in range(load.workers)
    ]
    by_key = {worker.view.key: worker for worker in workers}
    names = itertools.count()
    systems = [_blocks(names, load.system) for _ in range(load.systems)]
    history = [systems[chat % load.systems] for chat in range(load.chats)]
    turns, due = [0] * load.chats, [rng.uniform(0, load.think_s) for _ in range(load.chats)]
    firsts, wholes, taken, now = [], [], dict.fromkeys(by_key, 0), 0.0
    waiting: list[tuple[int, Chain, float]] = []
    while any(count < load.turns for count in turns):
        for chat in [chat for chat, at in enumerate(due) if at <= now]:
            due[chat] = float("inf")
            waiting.append((chat, history[chat] + _blocks(names, load.turn), now))
        while waiting and (free := [_view(worker) for worker in workers if len(worker.jobs) < load.slots]):
            chat, prompt, asked_at = waiting.pop(0)
            seen = {each.view.key: Seen(quiet_s=now - each.quiet_since) for each in workers}
            key = choose(free, prompt, Situation((), seen=seen)).key
            by_key[key].take(chat, prompt, int(load.answer * rng.uniform(0.5, 1.5)), asked_at, now)
            taken[key] += 1
        now += STEP_S
        for worker in workers:
            for job in worker.step(load, now):
                firsts.append(job.first_at - job.asked_at)
                wholes.append(now - job.asked_at)
                history[job.chat] = job.prompt + _blocks(names, load.answer)
                worker.held[job.slot] = history[job.chat]
                turns[job.chat] += 1
                if turns[job.chat] < load.turns:
                    due[job.chat] = now + load.think_s * rng.uniform(0.5, 1.5)
    return Times(statistics.fmean(firsts), statistics.fmean(wholes), tuple(taken.values()))


def round_robin() -> Choose:
    at: dict[str, WorkerKey] = {}

    def choose(free: Sequence[WorkerView], _: Chain, now: Situation) -> WorkerView:
        after = [worker for worker in free if worker.key > at.get("last", ("", ""))]
        chosen = min(after or free, key=lambda worker: worker.key)
        at["last"] = chosen.key
        return chosen

    return choose


def _view(worker: _Worker) -> WorkerView:
    count = len(worker.jobs)
    return replace(worker.view, in_flight=count, slots_free=worker.view.slots - count, held=tuple(worker.held))


def _blocks(names: itertools.count[int], tokens: int) -> Chain:
    return tuple(f"{next(names):016x}" for _ in range(tokens // BLOCK))
