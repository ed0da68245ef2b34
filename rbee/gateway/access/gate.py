"""Who may use the gateway, and how much at once: `Gate` of `interfaces`.

Rules
- Without a file of keys nobody needs one. Once there has been one, every call needs a key, over TCP and over a socket,
  until the gateway is started anew: a file that is removed, empty or damaged opens nothing. Of one that is removed or
  damaged callers are told, since their keys may be good; what is wrong with it stands in the log alone.
- The file is looked at with each request (one system call) and read again when it changed: a revoked key is refused
  from then on, and what it has running ends by itself.
- A key is compared with all of them, each in constant time, so that how long it takes tells nothing.
- Refused keys are counted, and written to the log once in a while, whatever their number.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rbee.base.errors import ConfigError, NodeError, RefusedError
from rbee.gateway.access.keys import PRIORITIES, ApiKey, hash_of, read_keys
from rbee.gateway.base.interfaces import Client
from rbee_remote.protocol import ErrorCode

_log = logging.getLogger(__name__)

#: Characters of a key that are looked at: ours have 69.
_LONGEST_KEY = 256
#: Seconds between two lines about refused keys.
REFUSALS_EVERY_S = 10.0
_MINUTE_S = 60.0

Clock = Callable[[], float]
#: What a file's status has to be the same in for it to be the same file: device, inode, size, times of change.
_Seen = tuple[int, ...]


class KeyGate:
    """path: the file of keys, which may be missing. clock: monotonic seconds."""

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._seen: _Seen | None = None
        self._problem: ConfigError | None = None
        self._needs_key = False
        self._use: dict[str, _Use] = {}
        self._refusals = Refusals("for want of a valid API key", clock)
        self._look()

    @property
    def needs_key(self) -> bool:
        self._look()
        return self._needs_key

    def check(self) -> None:
        """Raises ConfigError for a file that cannot be used."""
        self._look()
        if self._problem:
            raise self._problem

    def admit(self, headers: Mapping[str, str], address: str) -> Client:
        """Raises RefusedError INVALID_API_KEY; ConfigError where the file cannot be used."""
        self._look()
        if not self._needs_key:
            return Client(address=address)
        if self._problem:
            self._refusals.add(address)
            raise ConfigError(
                f"the gateway lets nobody in: its file of API keys, {self._path}, is missing or damaged; its log says "
                "how, and `rbee keys list` too; mend the file, or put a good one in its place"
            )
        given = key_in(headers)
        if not given:
            raise self._refused("no API key was given: send it as `Authorization: Bearer rbee-…`", address)
        found = self._find(given)
        if found is None:
            raise self._refused("the gateway does not know this API key", address)
        return Client(
            key=found.name,
            fingerprint=found.fingerprint,
            models=found.models,
            priority=PRIORITIES[found.priority],
            address=address,
        )

    @contextmanager
    def open(self, client: Client) -> Iterator[None]:
        """Raises NodeError RATE_LIMITED."""
        if not client.key:
            yield
            return
        use = self._use.setdefault(client.key, _Use())
        if key := self._keys.get(client.key):
            use.check(key, self._clock())
        use.open += 1
        try:
            yield
        finally:
            use.open -= 1

    def _find(self, given: str) -> ApiKey | None:
        digest = hash_of(given)
        found = None
        for key in self._keys.values():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _refused(self, message: str, address: str) -> RefusedError:
        self._refusals.add(address)
        return RefusedError(ErrorCode.INVALID_API_KEY, message)

    def _look(self) -> None:
        """Read the file where it is another than the one that was read last."""
        seen = _status(self._path)
        if seen == self._seen:
            return
        self._seen, self._keys, self._problem = seen, {}, None
        if seen is None and not self._needs_key:
            return
        self._needs_key = True
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            self._problem = error
            _log.error("nobody is let in: %s", error.message)
            return
        self._use = {name: use for name, use in self._use.items() if use.open or name in self._keys}
        _log.info("%d API keys in %s", len(self._keys), self._path)


@dataclass(slots=True)
class _Use:
    """What a key's requests are now. open: at once. begun: when those of the last minute began, the first first."""

    open: int = 0
    begun: deque[float] = field(default_factory=deque)

    def check(self, key: ApiKey, now: float) -> None:
        """Count a request that begins. Raises NodeError RATE_LIMITED, and counts nothing then."""
        if key.concurrency is not None and self.open >= key.concurrency:
            raise _limited(f"the API key {key.name} may have no more requests open than {self.open}", 1)
        if key.rpm is None:
            self.begun.clear()
            return
        while self.begun and self.begun[0] <= now - _MINUTE_S:
            self.begun.popleft()
        if len(self.begun) >= key.rpm:
            # The one that has to be over a minute ago for another to fit in.
            wait = self.begun[len(self.begun) - key.rpm] + _MINUTE_S - now
            raise _limited(
                f"the API key {key.name} may make no more requests within a minute than {len(self.begun)}",
                max(1, math.ceil(wait)),
            )
        self.begun.append(now)


def _limited(message: str, retry_after_s: int) -> NodeError:
    hint = f"try again in {retry_after_s} s"
    return NodeError(ErrorCode.RATE_LIMITED, message, hint=hint, details={"retry_after_s": retry_after_s})


class Refusals:
    """Counts what is refused, and says so once every REFUSALS_EVERY_S at most; needs a running event loop to say the
    last of them, too. why: as it is said."""

    def __init__(self, why: str, clock: Clock = time.monotonic) -> None:
        self._why = why
        self._clock = clock
        self._count = 0
        self._last_address = ""
        self._said_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, address: str) -> None:
        self._count += 1
        self._last_address = address
        left = self._said_at + REFUSALS_EVERY_S - self._clock()
        if left <= 0:
            self.say()
        elif self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(left, self.say)
            except RuntimeError:  # nothing runs: the next one says it
                return

    def say(self) -> None:
        """Write down what has not been written so far."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._count:
            where = self._last_address or "the socket"
            _log.warning("requests refused %s: %d, the last from %s", self._why, self._count, where)
            self._count, self._said_at = 0, self._clock()


def key_in(headers: Mapping[str, str]) -> str:
    """The key that a request brings, "" for none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    return given[:_LONGEST_KEY]


def _status(path: Path) -> _Seen | None:
    """None where nothing is there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return ()
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode,
        status.st_uid,
    )  # fmt: skip
