"""How far a run is, how fast it goes, and how long the rest takes. Pure, but for the clock that it is given."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rbee.base.events import BatchProgress

#: Seconds over which speeds are taken: several answers of most models.
WINDOW_S = 30.0


@dataclass(slots=True)
class Tally:
    """total: lines of the input. before: those that were done when this run began. done, failed, tokens (of prompts and
    answers): of all runs. by_node: lines of this run. again: tries after the first ones."""

    total: int
    before: int
    now: Callable[[], float]
    done: int = 0
    failed: int = 0
    tokens: int = 0
    again: int = 0
    by_node: Counter[str] = field(default_factory=Counter)
    _latest: deque[tuple[float, str, int]] = field(default_factory=deque)
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.now()

    @property
    def seconds(self) -> float:
        return self.now() - self._began

    @property
    def answered(self) -> int:
        """Lines of this run."""
        return self.done - self.before

    def add(self, node: str, *, failed: bool, tokens: int, completion: int) -> None:
        self.done += 1
        self.failed += failed
        self.tokens += tokens
        if node:
            self.by_node[node] += 1
        self._latest.append((self.now(), node, completion))
        self._drop()

    def progress(self, state: str = "") -> BatchProgress:
        self._drop()
        span = max(min(self.seconds, WINDOW_S), 1e-3)
        per_s = len(self._latest) / span
        by_node: Counter[str] = Counter()
        for _, node, completion in self._latest:
            if node:
                by_node[node] += completion
        left = self.total - self.done
        eta_s = left / per_s if per_s else None
        speeds = {node: round(tokens / span, 1) for node, tokens in sorted(by_node.items())}
        return BatchProgress(self.done, self.total, self.failed, round(per_s, 3), eta_s, self.tokens, speeds, state)

    def _drop(self) -> None:
        limit = self.now() - WINDOW_S
        while self._latest and self._latest[0][0] < limit:
            self._latest.popleft()
