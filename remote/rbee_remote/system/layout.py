"""Where a hive's files lie, and which paths it accepts.

Two folders: `home` (models, logs; may be on NFS) and `run_dir` (sockets, locks; always local, mode 0700).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rbee_remote.protocol import HIVE_SOCKET, ErrorCode, RemoteError, keeper_socket
from rbee_remote.system.strict_modes import unsafe_because

#: sockaddr_un holds 108 bytes on Linux and 104 on macOS, the final zero included.
MAX_SOCKET_PATH = 100


@dataclass(frozen=True, slots=True)
class Layout:
    home: Path
    run_dir: Path

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def logs(self) -> Path:
        return self.home / "log"

    @property
    def hive_log(self) -> Path:
        return self.logs / "hive.log"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def hive_socket(self) -> Path:
        return self.run_dir / HIVE_SOCKET

    @property
    def hive_lock(self) -> Path:
        return self.run_dir / "hive.lock"

    def worker_socket(self, worker: str) -> Path:
        return self.run_dir / f"worker-{worker}.sock"

    def staged_socket(self, pid: int) -> Path:
        """The name that a worker's socket has until it accepts connections."""
        return self.run_dir / f".{pid}"

    def worker_log(self, worker: str) -> Path:
        return self.logs / f"worker-{worker}.log"

    def prepare(self) -> None:
        """Make the folders, private to this user. Raises RemoteError where that is not possible: NODE_UNSUPPORTED
        where they would not be safe."""
        longest = keeper_socket(str(self.worker_socket("0" * 16)))
        if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
            raise RemoteError(
                ErrorCode.NODE_UNSUPPORTED,
                f"the path of a socket in {self.run_dir} would be longer than {MAX_SOCKET_PATH} bytes",
                hint="set XDG_RUNTIME_DIR on the node to a shorter folder",
            )
        try:
            for folder in (self.home, self.models, self.logs):
                _make_private(folder, "set `home` of the node in the inventory to a folder that you alone can write")
            _make_private(self.run_dir, "remove it or set XDG_RUNTIME_DIR on the node", mode=0o700)
        except OSError as error:
            raise RemoteError(ErrorCode.BOOTSTRAP_FAILED, f"cannot make a folder: {error}") from error


def _make_private(folder: Path, otherwise: str, mode: int | None = None) -> None:
    """Make `folder` and what is missing on the way to it, and refuse one that somebody else could have made or could
    replace. otherwise: what to do then. mode: what it gets, even if it is there; None to leave it as it is."""
    for place in (*reversed(folder.parents), folder):
        place.mkdir(mode=0o700, exist_ok=True)
    problem = unsafe_because(folder)
    if not problem and folder.stat().st_uid != os.geteuid():
        problem = f"{folder} belongs to somebody else"
    if not problem and mode is not None and folder.is_symlink():
        problem = f"{folder} is a symbolic link"
    if problem:
        raise RemoteError(
            ErrorCode.NODE_UNSUPPORTED,
            f"{folder} is not safe: {problem}",
            hint=f"look at it with `ls -ld {folder}`, and {otherwise}",
        )
    if mode is not None:
        folder.chmod(mode)


def socket_identity(path: Path) -> tuple[int, int, int] | None:
    """Tells a socket from another one at the same path; None where there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    # Inode numbers are used again at once on some file systems; the time tells those apart.
    return status.st_dev, status.st_ino, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class HiveOptions:
    """payload: digest of the payload it runs from. idle_exit, stall: seconds; see `server`."""

    layout: Layout
    payload: str
    idle_exit: float
    stall: float
