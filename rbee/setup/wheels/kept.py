"""Folders of builds in the wheel cache: one that was interrupted stays, and the next build of the same goes on there.

Rules
- Who uses one holds the cache's lock for builds. What an interrupted build left running is waited for by the next
  (hold_build.py).
- A folder's name says what is built from what: the locked source and what is changed in it, with
  a CUDA toolkit made in which way, for whom, and by whom.
- It stays where the build was interrupted: by Ctrl-C, a signal, or a lost connection; and where it was a full disk or
  too little memory that ended it, once enough is compiled to be worth the space. It goes when the build is done, and
  when it failed by itself: what is there may be why.
- Few are kept, and none for long. `rbee wheels prune` and `rbee gc` know them as half made, as nodes do theirs.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import ConnectError, NodeError
from rbee.setup.base import requirements
from rbee.setup.base.node_scripts import BUILD_DAYS, BUILD_PREFIX
from rbee.setup.base.platforms import Target
from rbee.setup.wheels.llama_wheel import WHAT
from rbee_remote.protocol import ErrorCode

PREFIX = BUILD_PREFIX
#: How many are kept besides the one in use, and seconds after which nobody comes back for one.
KEPT = 2
OLDEST_S = BUILD_DAYS * 24 * 3600.0
#: Compiled files that are worth the space where it was short: a minute or two of one core.
WORTH_FILES = 20

#: As the C library says it, in the words of compilers, linkers, shells and Python.
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
#: The kernel's killer, which takes the largest; and ninja, when somebody ended it.
_KILLED = re.compile(
    r"[Kk]illed signal terminated program|unable to execute command: Killed|build stopped: interrupted"
)
#: Ninja's steps in the log of a build, and what was done before it began.
_STEPS = re.compile(r"^\s*\[([0-9]{1,6})/[0-9]{1,6}\]|^going on: *([0-9]{1,6})$", re.MULTILINE)


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
    begun = is_begun(path)
    try:
        yield path
    except (ConnectError, asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if not goes_on(path, error) and not (begun and _cause(error)):
            _remove(path)
            raise
        raise _told(path, error) from error
    _remove(path)


def goes_on(folder: Path, error: BaseException) -> bool:
    """Whether what `error` broke off is worth going on with: here, or where the build of `folder` is compiled."""
    if isinstance(error, (ConnectError, asyncio.CancelledError, KeyboardInterrupt)):
        return True
    return bool(_cause(error)) and is_begun(folder) and _compiled(folder, error) >= WORTH_FILES


def _cause(error: BaseException) -> str:
    """What ended a build that no compiler refused, a clause; "" for anything else."""
    if isinstance(error, OSError):
        return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    if not isinstance(error, NodeError):
        return ""
    said = "\n".join([error.message, *map(str, error.details.get("last_lines", ()))])
    if error.code is ErrorCode.DISK_FULL or _FULL.search(said):
        return "the disk is full"
    return "it was killed, as where memory is short" if _KILLED.search(said) else ""


def _compiled(folder: Path, error: BaseException) -> int:
    """How many files are done: by what the build said, else by what ninja notes here."""
    with suppress(OSError):
        if isinstance(error, NodeError) and (log := error.details.get("log")):
            steps = _STEPS.findall(Path(log).read_text(encoding="utf-8", errors="replace"))
            before = max((int(done) for _, done in steps if done), default=0)
            return before + max((int(step) for step, _ in steps if step), default=0)
    with suppress(OSError):
        return len((folder / "build" / "cmake" / ".ninja_log").read_bytes().splitlines()) - 1
    return 0


def _told(folder: Path, error: BaseException) -> NodeError:
    """The error with what is kept."""
    cause, known = _cause(error), error if isinstance(error, NodeError) else None
    full = "full" in cause
    mend = "free some space" if full else "free some memory"
    count = _compiled(folder, error)
    done = f"the {count} files that are compiled are" if count else "what is compiled is"
    hint = (
        f"{mend} and try again: {done} kept for {BUILD_DAYS} days, and the next build goes on there "
        "(`rbee wheels prune` removes it)"
    )
    message = known.message if known else str(error)
    details = known.details if known else {}
    log = f"; the whole log is {details['log']}" if details.get("log") else ""
    code = ErrorCode.DISK_FULL if full else ErrorCode.BOOTSTRAP_FAILED
    return NodeError(
        code, f"building llama.cpp was broken off, {cause}: {message}", hint=f"{hint}{log}", details=details
    )


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
