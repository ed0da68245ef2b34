"""Which worker takes a request, which node loads a model, or who waits. Pure: values in, a decision out.

Of workers with a free slot the best by

    matched prefix / prompt  -  BETA * relative load

takes it. The prefix is what a slot's memory really holds, as the worker says; one that the prompt continues counts in
full, one that it merely shares counts less, since every worker soon has it. The load is a worker's share of taken slots
above that of the emptiest candidate, so that it counts for each worker by itself: nothing turns affinity off for
all. A worker without a free slot is no candidate, whatever it holds. Where prompts match nothing, the worker with most
empty memory takes it, then the one that was unused for longest: so misses spread, and spare what the others hold.

Rules
- One start at a time for one target: whoever wants it meanwhile waits for that one.
- A worker ends for another model's sake only when it is idle, and has had its turn or is not in use: two models that
  cannot both be loaded would otherwise change places with each request. Once its turn is over, requests that came after
  the one that waits for its place are not sent to it any more.
- Equal situations give equal decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.retries import BUSY_NODE_S
from rbee.gateway.base.views import NodeState, NodeView, Target, Wanted, WorkerKey, WorkerView
from rbee.gateway.routing.situation import (
    LOADS,
    SERVES,
    Decision,
    Load,
    Refuse,
    Rivals,
    Send,
    Situation,
    Start,
    Wait,
    load,
    load_s,
    room,
    serves,
)
from rbee.inventory import LOCAL
from rbee_remote.protocol import ErrorCode, WorkerState
from rbee_remote.protocol.prompt_digest import common_digests

#: What a fully loaded worker, beside an empty one, loses against one that holds nothing of the prompt. With SHARED the
#: best of a sweep in tests/unit/gateway/routing/test_simulation.py; llm-d weighs the load at two thirds of the prefix.
BETA = 0.8
#: What a prefix counts that the prompt has in common with another one, such as a system prompt, against one that it
#: continues. The first is computed again in a moment, once for each worker; at 1 the chats that share one all stay on
#: the first worker that has it, each held there by what it said since, and take twice as long with three workers idle.
SHARED = 0.25
#: A worker's turn while others wait for its place: so many times what loading took, so that at most a fifth of the time
#: goes into loading, and at least so many seconds.
TURN_LOADS, TURN_S = 4.0, 10.0
#: Seconds without a request after which a worker counts as out of use. The next turn of a chat, or the next step of an
#: agent, comes within that.
QUIET_S = 5.0
#: The same where it would end for a second worker of another model, which is no more than faster.
LONG_QUIET_S = 60.0
#: Seconds that a request takes, until it was measured.
TYPICAL_S = 5.0
#: Seconds for a node that is connecting to tell what it has, before another one fetches a model that it may have.
UNKNOWN_S = 5.0
#: Seconds for news that a worker which failed a request is gone, so that another may start in its place.
DOUBT_S = 10.0


def decide(now: Situation, wanted: Wanted, *, waiting: int = 1, waited_s: float = 0.0) -> Decision:
    """For the first of `waiting` requests that want the same, which has waited for waited_s."""
    refused: list[RbeeError] = []
    for target in wanted.targets:
        decision = _Choice(now, wanted, target, waiting, waited_s).decide()
        if not isinstance(decision, Refuse):
            return decision
        refused.append(decision.error)
    return Refuse(min(refused, key=_vagueness))


def best(
    free: Sequence[WorkerView], digests: tuple[str, ...], now: Situation, *, beta: float = BETA, shared: float = SHARED
) -> WorkerView:
    """Of workers with a free slot the one that takes a prompt."""
    lightest = min(load(worker, now) for worker in free)

    def rank(place: int) -> tuple[float, float, float, int]:
        worker = free[place]
        score = matched(worker, digests, shared) - beta * (load(worker, now) - lightest)
        return score, -sum(map(bool, worker.held)) / worker.slots, now.watched(worker).quiet_s, -place

    return free[max(range(len(free)), key=rank)]


def matched(worker: WorkerView, digests: tuple[str, ...], shared: float = SHARED) -> float:
    """The share of a prompt that a slot of the worker holds, weighed by whether the prompt continues what is there."""
    most = 0.0
    for held in worker.held:
        common = common_digests(held, digests)
        most = max(most, common if common == len(held) else shared * common)
    return most / len(digests) if digests else 0.0


def _vagueness(error: RbeeError) -> int:
    """What a load failed with says more than that a node is not there, and that more than that nobody can."""
    if error.code is ErrorCode.WORKER_GONE:
        return 2
    return 1 if isinstance(error, ConnectError) else 0


class _Choice:
    """One target, for one request."""

    def __init__(self, now: Situation, wanted: Wanted, target: Target, waiting: int, waited_s: float) -> None:
        self.now, self.wanted, self.target = now, wanted, target
        self.waiting, self.waited_s = waiting, waited_s
        self.nodes = [node for node in now.nodes if node.name in target.nodes]
        self.up = [node for node in self.nodes if node.state is NodeState.UP]
        self.workers = [worker for node in self.up for worker in node.workers if self._is_candidate(node, worker)]
        self.ready = [worker for worker in self.workers if worker.state in SERVES]

    def decide(self) -> Decision:
        now, background = self.now, self.wanted.background
        if unable := self._unable():
            return Refuse(unable)
        if background and (start := self._everywhere()):
            return start
        free = [
            each
            for each in self.ready
            if each.key not in now.held and room(each, now.watched(each), background=background) > 0
        ]
        if free:
            return Send(best(free, self.wanted.digests, now))
        loading = self._loading()
        if loading:
            return loading
        if self.ready:
            return self._more() or self._for_a_slot()
        return self._first()

    def _is_candidate(self, node: NodeView, worker: WorkerView) -> bool:
        if worker.key in self.wanted.avoid or not serves(node, worker, self.target, self.now):
            return False
        return worker.state in LOADS or not self.wanted.sha256 or worker.sha256 == self.wanted.sha256

    def _loading(self) -> Wait | None:
        """Where a worker for it is on its way, whoever asked for it."""
        shares = [worker.progress for worker in self.workers if worker.state in LOADS]
        left: list[float] = []
        gives_way: set[WorkerKey] = set()
        for node in self.up:
            if (taken_s := self._taken_s(node)) is not None:
                shares.append(0.0)
                left.append(max(0.0, load_s(node, self.target.model) - taken_s))
                gives_way |= self._giving_way(node, self._in_the_way(node, coming=0))  # until its node has ended it
        if not shares:
            return None
        return Wait(max(shares), min(left, default=0.0), self._each_s(), frozenset(gives_way))

    def _taken_s(self, node: NodeView) -> float | None:
        """Seconds that a load of it there has taken, None where none is under way."""
        this = self._as_load(node).by_anybody
        taken = (seconds for load, seconds in self.now.starting.items() if load.by_anybody == this)
        return max(taken, default=None)

    def _for_a_slot(self) -> Wait:
        return Wait(about_s=self._each_s(), each_s=self._each_s())

    def _each_s(self) -> float:
        """Seconds between two requests that end, with all workers at work."""
        rates = [worker.slots / (worker.typical_s or TYPICAL_S) for worker in self.ready]
        return 1 / sum(rates) if rates else 0.0

    def _more(self) -> Start | None:
        """Another worker, on a node without one, where the queue takes longer than loading."""
        has = {worker.key.node for worker in self.ready}
        able = [
            node
            for node in self._pool()
            if node.name not in has and self.target.model in node.models and self._may_start(node, LONG_QUIET_S)
        ]
        if not able:
            return None
        node = min(able, key=lambda each: (load_s(each, self.target.model), self._preference(each)))
        is_worth_it = self.waiting * self._each_s() > load_s(node, self.target.model)
        return Start(node.name, self.target) if is_worth_it else None

    def _everywhere(self) -> Start | None:
        """Another worker, on a node that has none and has room for one. This machine helps where it was chosen, or is
        all there is."""
        has = {worker.key.node for worker in self.workers}
        is_chosen = self.wanted.fetches or len(self.nodes) == 1
        pool = self._pool() if not self.wanted.fetches else [node for node in self.up if self._may_be_asked(node)]
        able = [
            node
            for node in pool
            if node.name not in has
            and (node.name != LOCAL or is_chosen)
            and self._taken_s(node) is None
            and self._may_start(node, LONG_QUIET_S)
        ]
        return Start(min(able, key=self._preference).name, self.target) if able else None

    def _may_be_asked(self, node: NodeView) -> bool:
        return self._as_load(node) not in self.now.failed and node not in self._doubtful()

    def _first(self) -> Decision:
        """A worker where there is none."""
        pool = self._pool()
        for quiet_s in (LONG_QUIET_S, QUIET_S):  # what nobody used for long ends first
            able = [node for node in pool if self._may_start(node, quiet_s)]
            if able:
                return Start(min(able, key=self._preference).name, self.target)
        doubtful = self._doubtful()
        crowded = [node for node in self._with_model() if node not in doubtful and self._waits_for_a_place(node)]
        if crowded:
            return self._for_a_place(min(crowded, key=self._preference))
        is_open = any(node.state is NodeState.CONNECTING for node in self.nodes)
        if is_open or (doubtful and self.waited_s < DOUBT_S):
            return Wait()
        return Refuse(self._error())

    def _unable(self) -> RbeeError | None:
        """Why the model is not what the request needs, which its file said on one node: no other is to fetch it."""
        if not self.target.ability:
            return None
        failed = (self.now.failed.get(self._as_load(node)) for node in self.up)
        return next((error for error in failed if error and "able" in error.details), None)

    def _pool(self) -> list[NodeView]:
        """Nodes that may be asked to load it now."""
        doubtful = {node.name for node in self._doubtful()}
        return [
            node
            for node in self._with_model()
            if node.name not in doubtful and self._as_load(node) not in self.now.failed
        ]

    def _with_model(self) -> list[NodeView]:
        """Those that have its file; where none has, those that can get it."""
        model, sha256 = self.target.model, self.wanted.sha256
        has = [node for node in self.up if model in node.models and sha256 in ("", node.models[model].sha256)]
        is_open = any(node.state is NodeState.CONNECTING for node in self.nodes) and self.waited_s < UNKNOWN_S
        return has or ([] if sha256 or is_open else self.up)

    def _doubtful(self) -> list[NodeView]:
        """Nodes that would give the very worker which failed the request, as far as is known."""
        return [
            node
            for node in self.up
            for worker in node.workers
            if worker.key in self.wanted.avoid
            and worker.state in SERVES | LOADS
            and serves(node, worker, self.target, self.now)
        ] + [node for node in self.up if node.in_doubt & self.wanted.avoid]

    def _may_start(self, node: NodeView, quiet_s: float) -> bool:
        """Whether there is a place, or one that is not in use."""
        in_the_way = self._in_the_way(node)
        return in_the_way is None or any(self._may_go(node, worker, quiet_s) for worker in in_the_way)

    def _in_the_way(self, node: NodeView, coming: int = 1) -> list[WorkerView] | None:
        """Workers of which one has to end first; None where nothing has. coming: workers beside those on their way."""
        live = [worker for worker in node.workers if worker.state in SERVES | LOADS]
        loading = sum(worker.state in LOADS for worker in live)
        starting = sum(each.node == node.name for each in self.now.starting)
        taken = len(live) - loading + max(loading, starting)  # a start is seen as a worker a moment later
        if node.max_workers is not None and taken + coming > node.max_workers:
            return live
        rivals = [worker for worker in live if self._are_rivals(node, worker)]
        return rivals or None

    def _are_rivals(self, node: NodeView, worker: WorkerView) -> bool:
        return Rivals(node.name, frozenset({worker.model, self.target.model})) in self.now.rivals

    def _may_go(self, node: NodeView, worker: WorkerView, quiet_s: float) -> bool:
        if worker.state is not WorkerState.IDLE or worker.in_flight:
            return False
        return self.now.watched(worker).quiet_s >= quiet_s or (
            quiet_s <= QUIET_S and self._turn_left(node, worker) <= 0
        )

    def _turn_left(self, node: NodeView, worker: WorkerView) -> float:
        turn_s = max(TURN_S, TURN_LOADS * load_s(node, worker.model))
        return turn_s - self.now.watched(worker).up_s

    def _waits_for_a_place(self, node: NodeView) -> bool:
        if (this := self._as_load(node)) in self.now.failed:
            return this in self.now.passing and self.waited_s < BUSY_NODE_S
        return self._in_the_way(node) is not None

    def _for_a_place(self, node: NodeView) -> Wait:
        """For one of the workers there to be idle."""
        in_the_way = self._in_the_way(node)
        turns = [self._turn_left(node, worker) for worker in in_the_way or () if worker.state in SERVES]
        about_s = max(0.0, min(turns, default=0.0)) + load_s(node, self.target.model)
        return Wait(about_s=about_s, gives_way=frozenset(self._giving_way(node, in_the_way)))

    def _giving_way(self, node: NodeView, in_the_way: Sequence[WorkerView] | None) -> set[WorkerKey]:
        """The one with least to do of those whose turn is over, or that are out of use, gets nothing younger."""
        able = [
            worker
            for worker in in_the_way or ()
            if worker.state in SERVES and (self._turn_left(node, worker) <= 0 or self._may_go(node, worker, QUIET_S))
        ]
        return {min(able, key=lambda worker: load(worker, self.now)).key} if able else set()

    def _preference(self, node: NodeView) -> tuple[bool, bool, int, bool]:
        """Lower is better; of equals the inventory's order decides. As for `infer`, this machine is the last resort."""
        at_work = sum(worker.in_flight > 0 or worker.state is not WorkerState.IDLE for worker in node.workers)
        return self.target.model not in node.models, self._in_the_way(node) is not None, at_work, node.name == LOCAL

    def _as_load(self, node: NodeView) -> Load:
        return Load(node.name, self.target.model, self.target.load, self.target.ability)

    def _error(self) -> RbeeError:
        failed = [error for node in self.up if (error := self.now.failed.get(self._as_load(node)))]
        if failed:
            return failed[0]
        model, details = self.target.model, {"model": self.target.model}
        down = [node for node in self.nodes if node.state is NodeState.DOWN]
        if down:
            why = "; ".join(f"{node.name}: {node.reason or 'it does not answer'}" for node in down[:3])
            return ConnectError(
                ErrorCode.CONNECTION_LOST,
                f"no node that could answer with {model} can be reached ({why})",
                hint="`rbee nodes ping` says more",
                details=details,
            )
        return NodeError(
            ErrorCode.WORKER_GONE,
            f"no node can answer with {model} now" if self.nodes else f"no node may answer with {model}",
            hint="`rbee workers list` shows what runs, `rbee models list` what each node has",
            details=details,
        )
