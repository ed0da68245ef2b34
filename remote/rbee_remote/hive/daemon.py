"""`hive`: one per run folder, detached from whoever started it, until it has had nothing to do for a while.

Rules
- Who holds the lock on hive.lock is the hive. A socket found by the lock's new holder is stale.
- The process that started it returns when the hive answers, and prints its HiveInfo, whoever's hive it is.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rbee_remote.protocol import ErrorCode, HiveInfo, ProtocolError, RemoteError, decode
from rbee_remote.system import logs, unix_http
from rbee_remote.system.layout import HiveOptions, Layout, socket_identity

START_TIMEOUT_S = 30.0
IDLE_EXIT_S = 600.0
_RETRY_S = 0.1
_MOST_DEATHS = 2
#: What the detached process writes to the one that waits for it.
_SERVING, _LOCKED = b"serving", b"locked"


def main(argv: list[str]) -> int:
    """Raises RemoteError BOOTSTRAP_FAILED."""
    parser = argparse.ArgumentParser(prog="rbee_remote hive")
    parser.add_argument("--home", type=Path, required=True, help="models, logs")
    parser.add_argument("--run-dir", type=Path, required=True, help="sockets and the lock; made with mode 0700")
    parser.add_argument("--payload", default="", help="digest of the payload it runs from")
    parser.add_argument("--detach", action="store_true", help="run in the background; returns once it serves")
    parser.add_argument("--idle-exit", type=float, default=IDLE_EXIT_S, help="seconds without workers until it ends")
    parser.add_argument("--stall", type=float, default=300.0, help="seconds a load may make no progress")
    arguments = parser.parse_args(argv)
    layout = Layout(home=arguments.home.absolute(), run_dir=arguments.run_dir.absolute())
    options = HiveOptions(layout, arguments.payload, arguments.idle_exit, arguments.stall)
    os.umask(0o077)
    layout.prepare()
    if not arguments.detach:
        return _run_in_foreground(options)
    sys.stdout.write(json.dumps(start_detached(options)) + "\n")
    return 0


def _run_in_foreground(options: HiveOptions) -> int:
    with _lock(options.layout) as held:
        if not held:
            raise RemoteError(ErrorCode.BOOTSTRAP_FAILED, f"another hive holds {options.layout.hive_lock}")
        _serve(options, on_serving=lambda: None)
    return 0


def start_detached(options: HiveOptions) -> dict[str, object]:
    """HiveInfo, as JSON, of the hive that runs now: one that was there, or a started one. One that ends while it starts
    is started once more, since it may have been killed.

    Raises RemoteError BOOTSTRAP_FAILED with the end of its log when none answers within 30 s.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    deaths = 0
    while time.monotonic() < deadline and deaths < _MOST_DEATHS:
        info = ask_health(options.layout.hive_socket)
        if info is not None:
            return info
        word = _detach(options, deadline)
        deaths += word not in (_SERVING, _LOCKED)
        if word == _LOCKED:
            # Another one is about to serve, or is ending and lets go of the lock soon.
            time.sleep(_RETRY_S)
    log = logs.last_lines(options.layout.hive_log, 10).decode("utf-8", "replace").splitlines()
    raise RemoteError(
        ErrorCode.BOOTSTRAP_FAILED,
        "the hive did not start",
        hint=f"the end of {options.layout.hive_log} on the node says why",
        details={"log": str(options.layout.hive_log), "last_lines": log},
    )


def ask_health(path: Path) -> dict[str, object] | None:
    """The HiveInfo of the hive that answers at `path`, as JSON; None where none does."""
    try:
        status, body = unix_http.request(path, "GET", "/v1/health")
        if status != 200:
            return None
        decode(HiveInfo, body)
    except (OSError, ValueError, ProtocolError):
        return None
    answer: dict[str, object] = body
    return answer


def _detach(options: HiveOptions, deadline: float) -> bytes:
    """Start the daemon and wait for its word: serving, locked, or b"" when it died (or said nothing in time)."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        # In the first child: nothing of the starter may run here, neither its `finally` nor its exit handlers.
        try:
            os.setsid()
            if os.fork() == 0:
                _be_daemon(options, writing)
        except BaseException:
            # Where it goes: to the hive's log, whose end the starter shows.
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    os.wait()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        return pipe.read(64) or b"" if ready else b""


def _be_daemon(options: HiveOptions, report: int) -> None:
    """In the second child, which is no session leader and cannot get a terminal. Does not return before the end."""
    _let_go_of_everything(options.layout.hive_log, keep=report)
    with _lock(options.layout) as held:
        if not held:
            os.write(report, _LOCKED)
            return

        def serving() -> None:
            with contextlib.suppress(BrokenPipeError):  # the starter has lost its patience
                os.write(report, _SERVING)
            os.close(report)

        _serve(options, on_serving=serving)


def _let_go_of_everything(log: Path, *, keep: int) -> None:
    """Close all descriptors but `keep`, of a starter's SSH channel above all, which would else not end."""
    os.chdir("/")
    os.umask(0o077)
    log_file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)
    os.closerange(3, keep)
    os.closerange(keep + 1, limit)
    # Python's own objects write to the descriptors 1 and 2, which are the log's now.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


@contextlib.contextmanager
def _lock(layout: Layout) -> Iterator[bool]:
    """Whether this process is the hive from now on. Children do not inherit the lock.

    An uninstall may have removed the file between opening and locking it: a lock on a file without a name is nobody's.
    """
    descriptor = os.open(layout.hive_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _is_at(layout.hive_lock, descriptor)
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _serve(options: HiveOptions, *, on_serving: Callable[[], None]) -> None:
    """Serve until the hive has ended; called by the lock's holder alone."""
    from rbee_remote.hive.dead_sockets import remove_dead_sockets
    from rbee_remote.hive.server import serve
    from rbee_remote.system.sanitize import configure_logging

    configure_logging()
    remove_dead_sockets(options.layout.run_dir)
    with listening(options.layout.hive_socket) as listener:
        serve(options, listener, on_serving)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket of mode 0600 at `path`, in place of a stale one; removed at the end, if it still is ours."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        own = socket_identity(path)
        listener.listen(128)
        try:
            yield listener
        finally:
            if own == socket_identity(path):
                path.unlink()
