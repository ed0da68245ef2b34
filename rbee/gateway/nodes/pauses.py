"""How long to wait before what failed is tried again."""

from __future__ import annotations

import random

from rbee.base.errors import ConfigError, NodeError, RefusedError
from rbee.base.retries import HOLD_LONGEST_PAUSE_S, HOLD_PAUSE_S, HOLD_REFUSED_PAUSE_S, HOLD_SPREAD, doubled
from rbee.node.socket_http import HungUpError
from rbee_remote.protocol import ErrorCode


class Pauses:
    """Grow with each failure in a row."""

    def __init__(self) -> None:
        self._failures = 0

    def well(self) -> None:
        """What fails next is the first failure."""
        self._failures = 0

    def after(self, error: Exception) -> float:
        """Seconds."""
        self._failures += 1
        is_refusal = _is_refusal(error)
        pause = HOLD_REFUSED_PAUSE_S if is_refusal else doubled(HOLD_PAUSE_S, HOLD_LONGEST_PAUSE_S, self._failures)
        return pause * random.uniform(*HOLD_SPREAD)  # noqa: S311 - no secret


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, NodeError):
        return not isinstance(error, HungUpError) and error.code is not ErrorCode.WORKER_GONE
    return isinstance(error, RefusedError | ConfigError)
