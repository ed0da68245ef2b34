"""What is known of one request while it runs, and what is recorded of it when it is over, whatever ended it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rbee.gateway.base.interfaces import Client, Ended
from rbee.gateway.base.views import WorkerKey
from rbee_remote.protocol import TrackedUsage


@dataclass(slots=True)
class Exchange:
    """started, queued_at, worker_at, first_at, over_at (the answer is complete here): on `time.monotonic`'s clock; None
    for what has not happened. The others: as in `Ended`."""

    request_id: str
    method: str
    path: str
    traceparent: str = ""
    client: Client = field(default_factory=Client)
    status: int = 0
    asked: str = ""
    model: str = ""
    worker: WorkerKey | None = None
    usage: TrackedUsage | None = None
    finish: str = ""
    failovers: int = 0
    started: float = field(default_factory=time.monotonic)
    queued_at: float | None = None
    worker_at: float | None = None
    first_at: float | None = None
    over_at: float | None = None
    was_let_in: bool = True

    def ended(self) -> Ended:
        now = self.over_at or time.monotonic()
        queue_s = (self.worker_at or now) - self.queued_at if self.queued_at else 0.0
        return Ended(
            request_id=self.request_id,
            client=self.client,
            method=self.method,
            path=self.path,
            status=self.status,
            asked=self.asked,
            model=self.model,
            worker=self.worker,
            usage=self.usage,
            finish=self.finish,
            failovers=self.failovers,
            seconds=now - self.started,
            first_s=None if self.first_at is None else self.first_at - self.started,
            queue_s=queue_s,
            traceparent=self.traceparent,
            was_let_in=self.was_let_in,
        )
