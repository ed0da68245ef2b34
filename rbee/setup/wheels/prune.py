"""What of the wheel cache is of no use any more: found, and removed.

Rules
- What this rbee's locks do not name goes, and what nothing can be made of; what they name stays, whoever it is for.
- Nothing is removed while somebody builds, who holds the cache's lock.
- What is half made stays while a process of this machine has it open or works in it, and for two hours after it was
  written to last: a cache may be shared by machines that do not see each other's processes.
- A folder loses its name at once and whole: who looks for it finds all of it or nothing. What is half removed is named
  as what is half made, and goes with the next `rbee wheels prune` or `rbee gc`.
- What belongs to somebody else is left alone, as is what rbee does not name so.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.durations import format_duration
from rbee.base.locks import held_at_once
from rbee.setup.wheels import cached
from rbee.setup.wheels.cache import BUILD_LOCK
from rbee.setup.wheels.cached import Cached, Kind, State

#: Seconds that something half made has to lie untouched.
LEFT_ALONE_S = 7200.0


@dataclass(frozen=True, slots=True)
class Judged:
    """goes: it is of no use. why: it goes, or stays, a clause. failure: why it is still there."""

    item: Cached
    why: str
    goes: bool
    failure: str = ""


def judge(root: Path) -> list[Judged]:
    """What to do about each thing in the cache that is not in use. Raises ConfigError."""
    items = [item for item in cached.contents(root) if item.state is not State.GOOD]
    busy = list(_busy_places()) if items else []
    return [_judge(item, time.time(), busy) for item in items]


def _judge(item: Cached, now: float, busy: Sequence[tuple[int, Path]]) -> Judged:
    try:
        newest = max(status.st_mtime for status in _statuses(item.path))
        is_ours = item.path.lstat().st_uid == os.getuid()
        path = item.path.resolve()
    except OSError as error:
        return Judged(item, f"it cannot be looked at: {error.strerror}", goes=False)
    if not is_ours or item.path.is_symlink():
        return Judged(item, "it belongs to somebody else", goes=False)
    if item.state is State.DOUBTED:
        return Judged(item, item.why, goes=False)
    if user := next((pid for pid, place in busy if place.is_relative_to(path)), None):
        return Judged(item, f"process {user} uses it", goes=False)
    if item.kind is not Kind.HALF_MADE:
        return Judged(item, item.why, goes=True)
    if now - newest < LEFT_ALONE_S:
        return Judged(item, f"it was written to in the last {format_duration(LEFT_ALONE_S)}", goes=False)
    return Judged(item, "left of an interrupted download or build", goes=True)


def remove(judged: Judged) -> Judged:
    """Remove what goes; `failure` says why it could not be removed."""
    path = judged.item.path
    going = path.with_name(f"{'.adding' if path.parent.name == 'llama' else '.staging'}-{secrets.token_hex(6)}")
    try:
        trusted_files.check(path.parent, "the wheel cache")
        path.rename(going)
        shutil.rmtree(going)
    except OSError as error:
        return Judged(judged.item, judged.why, goes=True, failure=error.strerror or str(error))
    return judged


@contextmanager
def while_nobody_builds(root: Path) -> Iterator[bool]:
    """Whether that is so; then nobody begins to either. Raises ConfigError where the cache cannot be written."""
    with held_at_once(root / BUILD_LOCK) as free:
        yield free


def _statuses(path: Path) -> Iterator[os.stat_result]:
    yield path.lstat()
    for base, folders, names in os.walk(path):
        for name in (*folders, *names):
            yield Path(base, name).lstat()


def _busy_places() -> Iterator[tuple[int, Path]]:
    """Where this user's processes work, and what they have open; nothing where there is no /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        for link in (entry / "cwd", entry / "exe", *_inside(entry / "fd")):
            try:
                yield int(entry.name), link.readlink()
            except OSError:
                continue


def _inside(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
