"""Sockets that killed processes have left in the run folder: removed by the hive that holds its lock."""

from __future__ import annotations

import contextlib
import logging
import re
import stat
from pathlib import Path

import psutil

from rbee_remote.system.unix_socket import listens

_log = logging.getLogger(__name__)

#: A worker's socket, and the name it has until it accepts connections (`worker.main`).
_WORKER_SOCKET = re.compile(r"worker-[0-9a-f]{16}\.(sock|keeper)")
_STAGED_SOCKET = re.compile(r"\.([1-9][0-9]*)")


def remove_dead_sockets(run_dir: Path) -> None:
    """Remove sockets of workers that nobody listens on. A worker of a hive before that still answers is left alone."""
    for path in run_dir.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its worker has just removed it
            if stat.S_ISSOCK(path.lstat().st_mode) and _is_dead(path):
                path.unlink()
                _log.info("removed %s, which nobody listens on", path.name)


def _is_dead(path: Path) -> bool:
    if staged := _STAGED_SOCKET.fullmatch(path.name):
        return not _is_worker(int(staged[1])) and not listens(str(path))
    return bool(_WORKER_SOCKET.fullmatch(path.name)) and not listens(str(path))


def _is_worker(pid: int) -> bool:
    """Whether such a process runs, and may be about to listen: its socket refuses until then."""
    try:
        return "worker" in psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
