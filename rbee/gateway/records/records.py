"""What is kept of each request: `Recorder` of `interfaces`.

Rules
- Counting for Prometheus happens at once, on the event loop. Whatever touches a file happens in one thread, which is
  handed values through a queue with a bound: a disk that hangs costs lines, and no request.
- A request that brought no valid key is counted and nothing else (`gate` writes of all of them together), so that
  nobody fills a disk with wrong keys. The audit log is about what was done with a key or without needing one: requests
  that a limit refused are in the request log alone.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rbee import audit
from rbee.base.errors import ConfigError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings, make_private_folder
from rbee.gateway.base.interfaces import Ended
from rbee.gateway.records import usage
from rbee.gateway.records.request_log import NAME, RequestLog, line_of, logging_to
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.gateway.records.metrics import Metrics

_log = logging.getLogger(__name__)

#: Seconds between two writes of usage: what a kill -9 costs.
WRITE_EVERY_S = 2.0
#: Seconds for which records are gathered before they are written: the thread takes the interpreter from the event loop
#: when it wakes up, at the end of one request, which is when the next one begins.
GATHER_S = 0.2
#: Requests whose records wait to be written.
MOST_WAITING = 10_000
#: Seconds that the end waits for what is to be written.
FAREWELL_S = 10.0
#: Seconds between two lines that say the same trouble again.
TROUBLE_EVERY_S = 60.0
#: Methods that change nothing and ask no model, such as a list of models or a scrape; no lines of the audit log.
_LOOKS = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True, slots=True)
class _Record:
    request: Ended
    time: datetime


class Records:
    """Used as `with Records(…) as records`: leaving it writes what is left. log: its file's name. audits: whether the
    audit log has a line for each request; where it has one for all of them, somebody else writes it. Raises ConfigError
    where the log cannot be opened."""

    def __init__(self, settings: Settings, metrics: Metrics, log: str = NAME, *, audits: bool = True) -> None:
        self._settings = settings
        self._audits = audits
        self._metrics = metrics
        self._usage_path = usage.default_path(settings)
        self._pending = usage.Pending()
        self._queue: queue.Queue[_Record | None] = queue.Queue(MOST_WAITING)
        self._over = threading.Event()
        self._trouble: dict[str, float] = {}
        self._lost = 0
        try:
            make_private_folder(settings.log)
            self._file = RequestLog(settings.log, log)
        except OSError as error:
            raise ConfigError(f"cannot write {settings.log}: {error.strerror}", hint="check who owns it") from error
        self._logging = logging_to(self._file)
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)

    def __enter__(self) -> Self:
        self._logging.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        try:
            self._queue.put(None, timeout=FAREWELL_S)
            self._thread.join(FAREWELL_S)
        except queue.Full:
            _log.error("what was to be recorded of the last requests could not be written in time")
        self._logging.__exit__(None, None, None)
        self._file.close()

    def ended(self, request: Ended) -> None:
        self._metrics.ended(request)
        if not request.was_let_in:
            return
        try:
            self._queue.put_nowait(_Record(request, datetime.now(UTC)))
        except queue.Full:
            self._lost += 1

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        write_at = math.inf
        while True:
            try:
                left = None if math.isinf(write_at) else max(0.0, write_at - time.monotonic())
                record = self._queue.get(timeout=left)
            except queue.Empty:
                write_at = self._write_usage()
                continue
            self._over.wait(GATHER_S)
            if not self._take_all(record):
                self._write_usage()
                return
            write_at = min(write_at, time.monotonic() + WRITE_EVERY_S)
            if time.monotonic() >= write_at:
                write_at = self._write_usage()

    def _take_all(self, record: _Record | None) -> bool:
        """A record, and those that wait behind it; False after the last one."""
        with suppress(queue.Empty):
            while record is not None:
                self._take(record)
                record = self._queue.get_nowait()
            return False
        return True

    def _take(self, record: _Record) -> None:
        request, client = record.request, record.request.client
        self._file.write(line_of(request, record.time))
        if request.model:
            self._pending.add(_row(record), _counts(request))
        if not self._audits or request.method in _LOOKS or request.finish == ErrorCode.RATE_LIMITED.value:
            return
        audit.record(
            self._settings,
            "gateway.request",
            emit=self._say,
            node=request.worker.node if request.worker else "",
            outcome=request.finish or audit.OK,
            request=request.request_id,
            key=client.key or None,
            fingerprint=client.fingerprint or None,
            address=client.address or None,
            path=request.path,
            model=request.model or request.asked,
            worker=request.worker.id if request.worker else None,
        )

    def _write_usage(self) -> float:
        """When it is to be written next, on the monotonic clock; infinite where nothing is left."""
        lost, self._lost = self._lost, 0
        lost, self._pending.lost = lost + self._pending.lost, 0
        if lost:
            self._say(Notice(f"records of {lost} requests were lost: they could not be written as fast as they came"))
        if not self._pending:
            return math.inf
        try:
            self._pending.write(self._usage_path)
        except ConfigError as error:
            self._say(Notice(f"usage is not written for now: {error.message}"))
        except Exception:  # a bug, which must not end the thread
            _log.exception("usage is not written for now")
        else:
            return math.inf
        return time.monotonic() + WRITE_EVERY_S

    def _say(self, event: Event) -> None:
        """Log trouble, the same trouble once in a while."""
        text = event.text if isinstance(event, Notice) else str(event)
        kind, now = text.partition(":")[0], time.monotonic()
        if now - self._trouble.get(kind, -math.inf) >= TROUBLE_EVERY_S:
            self._trouble[kind] = now
            _log.warning("%s", text)


def _row(record: _Record) -> usage.Row:
    request = record.request
    node = request.worker.node if request.worker else ""
    return usage.Row(record.time.date().isoformat(), request.client.key, request.model, node)


def _counts(request: Ended) -> usage.Counts:
    told = request.usage
    return usage.Counts(
        requests=1,
        failed=int(bool(request.finish)),
        tokens_in=told.prompt if told else 0,
        tokens_cached=told.cached if told else 0,
        tokens_out=told.completion if told else 0,
        seconds=request.seconds,
    )
