"""What the worker has done so far, in numbers, and how Prometheus is told.

Rules
- Counting happens on the event loop's thread, once for each request, when its journal closes.
- prometheus_client is imported when somebody asks: it takes 4.5 MB and 40 ms, and most workers are never asked.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from rbee_remote.protocol import Done, RemoteError, Started, TokenEvent, Work, WorkerConfig, WorkerStatus
from rbee_remote.worker.requests.journal import Journal

if TYPE_CHECKING:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.metrics_core import Metric

#: Upper bounds in seconds. A wait is nothing or up to minutes; a token takes from milliseconds to a second.
WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)


class Distribution:
    """A histogram over buckets with these upper bounds, and one above them all."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        from prometheus_client.core import HistogramMetricFamily

        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        buckets = [(bound, float(count)) for bound, count in zip(names, accumulate(self._counts), strict=True)]
        return HistogramMetricFamily(name, documentation, buckets, self._sum)


class Metrics:
    """Of one worker, since it started."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._prompt_tokens = 0
        self._reused_tokens = 0
        self._generated_tokens = 0
        self._embeddings = 0
        self._embedded_tokens = 0
        self._queue = Distribution(WAITS)
        self._first_token = Distribution(WAITS)
        self._token = Distribution(TOKENS)
        self._first_token_s = 0.0  # of late

    def work(self, running: Iterable[Journal]) -> Work:
        """running: the journals of requests that are not over; what they have so far counts too."""
        generated, prompt = self._generated_tokens, self._prompt_tokens + self._embedded_tokens
        for journal in running:
            first, last = journal.first, journal.last
            prompt += first.prompt_tokens if isinstance(first, Started) else 0
            generated += last.tokens if isinstance(last, TokenEvent) else 0
        return Work(generated, prompt, self._outcomes.total() + self._embeddings, round(self._first_token_s, 4))

    def ended(self, journal: Journal) -> None:
        """Count a request that is over: by how it ended, which for an error is its code."""
        first, last = journal.first, journal.last
        if isinstance(last, RemoteError):
            self._outcomes[last.code.value.lower()] += 1
        if isinstance(first, Started):
            self._prompt_tokens += first.prompt_tokens
            self._reused_tokens += first.reused_tokens
        if not isinstance(last, Done):
            return
        self._outcomes[last.finish_reason] += 1
        generated, timings = last.usage.completion_tokens, last.timings
        self._generated_tokens += generated
        if isinstance(first, Started):
            self._queue.observe(timings.queue_s)
        if generated:
            self._observe_first_token(timings.queue_s + timings.prompt_s)
        if generated > 1:
            self._token.observe(timings.generate_s / (generated - 1))

    def _observe_first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)
        self._first_token_s += (seconds - self._first_token_s) / 4 if self._first_token_s else seconds

    def embedded(self, tokens: int) -> None:
        """Count a text whose embedding was computed."""
        self._embeddings += 1
        self._embedded_tokens += tokens

    def render(self, config: WorkerConfig, status: WorkerStatus, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the Accept header asks for."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry()
        registry.register(_Snapshot([*_state(config, status), *self._families()]))
        ProcessCollector(registry=registry)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        requests = CounterMetricFamily(
            "rbee_requests", "Requests that are over, by finish reason or error code.", labels=["outcome"]
        )
        for outcome, count in sorted(self._outcomes.items()):
            requests.add_metric([outcome], count)
        yield requests
        for name, documentation, value in (
            ("rbee_prompt_tokens", "Tokens of prompts, reused ones included.", self._prompt_tokens),
            ("rbee_prompt_tokens_reused", "Tokens of prompts that a request before had computed.", self._reused_tokens),
            ("rbee_generated_tokens", "Tokens generated.", self._generated_tokens),
            ("rbee_embeddings", "Texts embedded.", self._embeddings),
            ("rbee_embedding_tokens", "Tokens of texts embedded.", self._embedded_tokens),
        ):
            yield CounterMetricFamily(name, documentation, value)
        yield self._queue.family("rbee_request_queue_seconds", "Wait for a slot.")
        yield self._first_token.family("rbee_time_to_first_token_seconds", "From the request to its first token.")
        yield self._token.family(
            "rbee_time_per_output_token_seconds", "Between two tokens of a request, in its mean; one value a request."
        )


class _Snapshot:
    """What a registry collects: metrics that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _state(config: WorkerConfig, status: WorkerStatus) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    info = {"id": config.id, "model": config.model, "device": status.device, "ctx": str(config.ctx)}
    yield InfoMetricFamily("rbee_worker", "The worker.", info)
    for name, documentation, value in (
        ("rbee_loading_progress_ratio", "Loaded share of the model.", status.progress),
        ("rbee_slots", "Requests that can be computed at once.", status.slots),
        ("rbee_slots_busy", "Slots that are taken.", status.slots - status.slots_free),
        ("rbee_requests_queued", "Requests that wait for a slot.", status.queued),
    ):
        yield GaugeMetricFamily(name, documentation, value)
