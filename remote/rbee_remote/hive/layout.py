"""Where a hive's files lie, and which paths it accepts.

Two folders: `home` (models, logs; may be on NFS) and `run_dir` (sockets, locks; always local, mode 0700).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from rbee_remote.protocol import HIVE_SOCKET, ErrorCode, RemoteError

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
        """Make the folders, private to this user. Raises RemoteError BOOTSTRAP_FAILED where that is not possible."""
        longest = self.worker_socket("0" * 16)
        if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
            raise RemoteError(
                ErrorCode.BOOTSTRAP_FAILED,
                f"the path of a socket in {self.run_dir} would be longer than {MAX_SOCKET_PATH} bytes",
                hint="set XDG_RUNTIME_DIR on the node to a shorter folder",
            )
        try:
            for folder in (self.home, self.models, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_private(self.run_dir)
        except OSError as error:
            raise RemoteError(ErrorCode.BOOTSTRAP_FAILED, f"cannot make a folder: {error}") from error


def _make_private(folder: Path) -> None:
    """Make `folder` with mode 0700, and refuse one that somebody else could have made or could replace."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    parent = folder.parent.lstat()
    shared = parent.st_mode & 0o022 and not parent.st_mode & stat.S_ISVTX
    if not stat.S_ISDIR(parent.st_mode) or parent.st_uid not in (0, os.geteuid()) or shared:
        raise _not_ours(folder.parent)
    own = folder.lstat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid():
        raise _not_ours(folder)
    folder.chmod(0o700)


def _not_ours(folder: Path) -> RemoteError:
    return RemoteError(
        ErrorCode.BOOTSTRAP_FAILED,
        f"{folder} is a link, belongs to another user, or can be changed by others",
        hint=f"look at it with `ls -ld {folder}`, and remove it or set XDG_RUNTIME_DIR on the node",
    )


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
