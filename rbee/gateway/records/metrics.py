"""/metrics of the gateway: the fleet as it is now, and the requests that are over, for Prometheus.

Rules
- A client chooses no label's value. A model counts by its name where a node has it, and as "other" elsewhere; keys
  count by their names, of which their file has a few.
- What is now (nodes, workers, slots, queues) is read off the fleet when somebody asks; nothing is kept in step.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from rbee.gateway.base.interfaces import Ended, Fleet
from rbee.gateway.base.views import NodeState, NodeView, WorkerView
from rbee_remote.protocol import VERSION, ErrorCode, WorkerState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

#: Upper bounds in seconds, as a worker has them: a wait is nothing or up to minutes, a token takes milliseconds.
WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
#: A timer of a loop with nothing to do comes up to 1 ms late, by the resolution of epoll.
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
#: The label of a model that no node has, and how many there are names for at most.
OTHER, MOST_MODELS = "other", 500
_CODES = {code.value for code in ErrorCode}


class Metrics:
    """Of one gateway, since it started."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._models: set[str] = set()
        self._fleet: Fleet | None = None
        self._known_at: int | None = None
        self.waiting: Callable[[], Mapping[str, int]] = dict
        per_key, per_model = ["key", "model"], ["model"]
        self._requests = Counter(
            "rbee_gateway_requests",
            'Requests that are over; outcome is "ok" or the error\'s code.',
            [*per_key, "outcome"],
            registry=registry,
        )
        self._errors = Counter(
            "rbee_gateway_errors",
            "Requests that failed, by the node that had them.",
            ["node", "code"],
            registry=registry,
        )
        self._failovers = Counter(
            "rbee_gateway_failovers", "How often an answer went on elsewhere.", per_model, registry=registry
        )
        self._prompt = Counter(
            "rbee_gateway_prompt_tokens", "Tokens of prompts, cached ones included.", per_key, registry=registry
        )
        self._cached = Counter(
            "rbee_gateway_cached_tokens",
            "Tokens of prompts that a worker had computed before.",
            per_key,
            registry=registry,
        )
        self._generated = Counter("rbee_gateway_generated_tokens", "Tokens generated.", per_key, registry=registry)
        self._seconds = Histogram(
            "rbee_gateway_request_seconds", "A request, all in all.", per_model, registry=registry, buckets=WAITS
        )
        self._queue = Histogram(
            "rbee_gateway_queue_seconds",
            "From a request to the worker that takes it.",
            per_model,
            registry=registry,
            buckets=WAITS,
        )
        self._first = Histogram(
            "rbee_gateway_time_to_first_token_seconds",
            "From a request to the first byte of its answer's content.",
            per_model,
            registry=registry,
            buckets=WAITS,
        )
        self._token = Histogram(
            "rbee_gateway_time_per_output_token_seconds",
            "Between two tokens of a request, in its mean; one value a request.",
            per_model,
            registry=registry,
            buckets=TOKENS,
        )
        self._lag = Histogram(
            "rbee_gateway_loop_lag_seconds",
            "How late the event loop is: what each request waits beyond its own work.",
            registry=registry,
            buckets=LAGS,
        )
        registry.register(_Now(self))
        ProcessCollector(registry=registry)

    def watch(self, fleet: Fleet, waiting: Callable[[], Mapping[str, int]] = dict) -> None:
        """From now on the fleet is shown, too. waiting: requests that wait for a worker, by model."""
        self._fleet, self.waiting = fleet, waiting

    def lagged(self, seconds: float) -> None:
        """The event loop was so late."""
        self._lag.observe(seconds)

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        return self._fleet.nodes if self._fleet else ()

    def ended(self, request: Ended) -> None:
        key, model = request.client.key, self.label(request.model)
        code = request.finish if request.finish in _CODES else "OTHER"
        self._requests.labels(key, model, code.lower() if request.finish else "ok").inc()
        if request.finish:
            self._errors.labels(request.worker.node if request.worker else "", code.lower()).inc()
        if not model:
            return
        self._seconds.labels(model).observe(request.seconds)
        if request.worker:
            self._queue.labels(model).observe(request.queue_s)
        if request.failovers:
            self._failovers.labels(model).inc(request.failovers)
        if request.first_s is not None:
            self._first.labels(model).observe(request.first_s)
        self._count_tokens(request, key, model)

    def _count_tokens(self, request: Ended, key: str, model: str) -> None:
        usage = request.usage
        if usage is None:
            return
        self._prompt.labels(key, model).inc(max(0, usage.prompt))
        self._cached.labels(key, model).inc(max(0, usage.cached))
        self._generated.labels(key, model).inc(max(0, usage.completion))
        if request.first_s is not None and usage.completion > 1:
            self._token.labels(model).observe(max(0.0, request.seconds - request.first_s) / (usage.completion - 1))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def label(self, model: str) -> str:
        """ "" for a request that named none."""
        if not model or model in self._models:
            return model
        if self._fleet and self._fleet.version != self._known_at:
            self._known_at = self._fleet.version
            found = {*_catalog(self.nodes), *(worker.model for worker in _workers(self.nodes))}
            self._models.update(sorted(found - self._models)[: MOST_MODELS - len(self._models)])
        return model if model in self._models else OTHER


def _catalog(nodes: Iterable[NodeView]) -> Iterator[str]:
    for node in nodes:
        yield from node.models


def _workers(nodes: Iterable[NodeView]) -> Iterator[WorkerView]:
    for node in nodes:
        yield from node.workers


#: Gauges of each node and model: (name, documentation, what a worker adds).
PER_WORKER: tuple[tuple[str, str, Callable[[WorkerView], int]], ...] = (
    ("slots", "Requests that can be computed at once.", lambda worker: worker.slots),
    ("slots_busy", "Slots that are taken.", lambda worker: worker.slots - worker.slots_free),
    ("worker_queue", "Requests that wait at the workers.", lambda worker: worker.queued),
    ("requests_open", "Requests that workers have from this gateway.", lambda worker: worker.in_flight),
)


class _Now(Collector):
    """The fleet, at the moment of asking."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        nodes = self._metrics.nodes
        yield InfoMetricFamily("rbee_gateway", "The gateway.", {"version": VERSION})
        states = Tally(node.state for node in nodes)
        yield _gauge("nodes", "Nodes, by state.", ["state"], {(state.value,): states[state] for state in NodeState})
        yield _gauge(
            "node_up", "Whether the node is connected.", ["node"],
            {(node.name,): float(node.state is NodeState.UP) for node in nodes},
        )  # fmt: skip
        workers = Tally((worker.key.node, worker.state) for worker in _workers(nodes))
        yield _gauge(
            "workers", "Workers, by node and state.", ["node", "state"],
            {(node.name, state.value): workers[node.name, state] for node in nodes for state in WorkerState},
        )  # fmt: skip
        for name, documentation, value in PER_WORKER:
            sums: Tally[tuple[str, ...]] = Tally()
            for worker in _workers(nodes):
                sums[worker.key.node, worker.model] += value(worker)
            yield _gauge(name, documentation, ["node", "model"], sums)
        waiting: Tally[tuple[str, ...]] = Tally()
        for model, count in self._metrics.waiting().items():
            waiting[self._metrics.label(model),] += count
        yield _gauge("queue", "Requests that wait for a worker.", ["model"], waiting)


def _gauge(name: str, documentation: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(f"rbee_gateway_{name}", documentation, labels=labels)
    for at, value in values.items():
        family.add_metric(at, value)
    return family
