"""Folders of builds in the wheel cache: one that was interrupted stays, and the next build of the same goes on there.

Rules
- Who uses one holds the cache's lock for builds. What an interrupted build left running is waited for by the next
  (hold_build.py).
- A folder's name says what is built from what: the locked source and what is changed in it, with
  a CUDA toolkit made in which way, for whom, and by whom.
- It stays where the build was interrupted: by Ctrl-C, a signal, or a lost connection. It goes when the build is done,
  and when it failed: what is there may be why, and a full disk is to be free again.
- Few are kept, and none for long. `rbee wheels prune` and `rbee gc` know them as half made, as nodes do theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import ConnectError
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels.llama_wheel import WHAT

PREFIX = ".staging-build-"
#: How many are kept besides the one in use, and seconds after which nobody comes back for one.
KEPT = 2
OLDEST_S = 3 * 24 * 3600.0


@contextmanager
def build_folder(root: Path, flags: str, built_on: str) -> Iterator[Path]:
    """The folder in the cache `root` where llama.cpp is built with `flags`. built_on: the node that does, "" for none.

    Raises ConfigError where somebody else could have put something there.
    """
    path = root / f"{PREFIX}{_key(flags, built_on)}"
    _tidy(path)
    path.mkdir(mode=0o700, exist_ok=True)
    trusted_files.check(path, WHAT)
    os.utime(path)
    try:
        yield path
    except (ConnectError, asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException:
        _remove(path)
        raise
    _remove(path)


def is_begun(folder: Path) -> bool:
    """Whether an interrupted build left something in `folder`, or on the node that it named."""
    return (folder / "build" / "made-with").exists() or (folder / "nonce").exists()


def nonce(folder: Path) -> str:
    """Names the folder on the node where what is built in `folder` is compiled: no other keeper has it."""
    file = folder / "nonce"
    with suppress(OSError):
        if said := file.read_text(encoding="ascii"):
            return said
    said = secrets.token_hex(6)
    file.write_text(said, encoding="ascii")
    return said


def _key(flags: str, built_on: str) -> str:
    changes = resources.files("rbee.setup.wheels").joinpath("source.py").read_text(encoding="utf-8")
    makes = resources.files("rbee.setup.base").joinpath("make_toolkit.py").read_text(encoding="utf-8")
    parts = [requirements.llama().line(), changes, makes, flags, built_on or Target.here().name]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _tidy(ours: Path) -> None:
    """Remove what nobody comes back for."""
    others = []
    for path in ours.parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = path.lstat()
            if path != ours and status.st_uid == os.getuid() and path.is_dir() and not path.is_symlink():
                others.append((status.st_mtime, path))
    others.sort(reverse=True)
    for number, (changed, path) in enumerate(others):
        if number >= KEPT or time.time() - changed > OLDEST_S:
            _remove(path)


def _remove(path: Path) -> None:
    """It loses its name at once, so that nothing half removed is gone on with."""
    going = path.with_name(f".staging-{secrets.token_hex(6)}")
    with suppress(OSError):
        path.rename(going)
        shutil.rmtree(going, ignore_errors=True)
