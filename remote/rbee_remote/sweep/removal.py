"""Taking a file or folder away, if it still is what was surveyed and nothing uses it.

Rules
- Only what `files.scan` lists is ever removed, so a keeper can name nothing else; each step to it is opened in the one
  above it, and none is a link.
- A folder is renamed first: whatever happens while it is deleted, it never again looks like a runtime, and a later
  clean-up goes on with it (`.removed-…`). Where it cannot be renamed, what makes it a runtime is deleted first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence

from rbee_remote.protocol import FileSeen, TidyRequest, TidyResult
from rbee_remote.sweep import files, processes
from rbee_remote.sweep.files import Found, identity_of
from rbee_remote.sweep.usage import Usage
from rbee_remote.system.interface import System
from rbee_remote.system.unix_socket import listens

#: Seconds for which what was seen of the processes counts: looking takes a few hundredths, and a log goes in none.
_FRESH_S = 0.5


def remove_files(system: System, request: TidyRequest) -> list[TidyResult]:
    """One result for each file of the request, in its order."""
    if not request.files:
        return []
    there = {found.path: found for found in files.scan(request.home, request.run_dir)}
    removing = _Removing(system, request)
    return [removing.remove(seen, there.get(seen.path)) for seen in request.files]


class _Removing:
    """One request's files, with what processes use at the moment."""

    def __init__(self, system: System, request: TidyRequest) -> None:
        self._system = system
        self._request = request
        self._looked_at: float | None = None

    def remove(self, seen: FileSeen, found: Found | None) -> TidyResult:
        if found is None or found.kind != seen.kind:
            return TidyResult(seen.path, done=False, why="it is gone, or not what it was")
        if found.identity != seen.identity:
            return TidyResult(seen.path, done=False, why="it was used or changed since")
        if user := self._user(found):
            return TidyResult(seen.path, done=False, why=f"it is in use: {user}")
        try:
            with files.opened(found.base, found.folder) as folder:
                why = _remove_folder(found, folder) if found.is_folder else _remove_file(found, folder)
        except OSError as error:
            return TidyResult(seen.path, done=False, why=f"it cannot be removed: {error.strerror or error}")
        return TidyResult(seen.path, done=not why, bytes=0 if why else seen.bytes, why=why)

    def _user(self, found: Found) -> str:
        now = self._system.monotonic()
        if self._looked_at is None or now - self._looked_at > _FRESH_S:
            self._look()
        if files.is_log_of(found, self._alive):
            return "its worker runs"
        user = self._usage.user(found.path)
        if not user and found.kind == "socket" and listens(found.path):
            return "somebody listens there"
        return user

    def _look(self) -> None:
        home, run_dir = self._request.home, self._request.run_dir
        ours: Sequence[processes.Ours] = processes.find_ours(self._system, self._system.processes(), home, run_dir)
        self._alive = {one.command.instance for one in ours if one.command.instance}
        self._usage = Usage.of(self._system, home, run_dir, ours)
        self._looked_at = self._system.monotonic()


def _remove_file(found: Found, folder: int) -> str:
    """Raises OSError."""
    status = os.stat(found.name, dir_fd=folder, follow_symlinks=False)
    if identity_of(status) != found.identity:
        return "it was used or changed since"
    os.unlink(found.name, dir_fd=folder)
    return ""


def _remove_folder(found: Found, folder: int) -> str:
    """Raises OSError."""
    aside = f".removed-{secrets.token_hex(6)}"
    try:
        os.rename(found.name, aside, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return _remove_in_place(found, folder)
    status = os.stat(aside, dir_fd=folder, follow_symlinks=False)
    if (status.st_dev, status.st_ino) != (found.status.st_dev, found.status.st_ino):
        os.rename(aside, found.name, src_dir_fd=folder, dst_dir_fd=folder)
        return "it was replaced since"
    remove_tree(aside, folder)
    return ""


def _remove_in_place(found: Found, folder: int) -> str:
    """For what lies in a layer of a container's image, from which overlayfs renames no folder. Programs go first:
    without them it is no runtime. Raises OSError."""
    own = os.open(found.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(own)
        if (status.st_dev, status.st_ino) != (found.status.st_dev, found.status.st_ino):
            return "it was replaced since"
        with contextlib.suppress(FileNotFoundError):
            remove_tree("bin", own)
    finally:
        os.close(own)
    remove_tree(found.name, folder)
    return ""


def remove_tree(name: str, folder: int) -> None:
    """Delete a folder and all in it, following no link. Raises OSError for the first thing that cannot be removed."""
    for _, folders, names, descriptor in os.fwalk(name, topdown=False, onerror=_raise, dir_fd=folder):
        for inside in names:
            os.unlink(inside, dir_fd=descriptor)
        for inside in folders:
            try:
                os.rmdir(inside, dir_fd=descriptor)
            except NotADirectoryError:  # noqa: PERF203 - a link to a folder
                os.unlink(inside, dir_fd=descriptor)
    os.rmdir(name, dir_fd=folder)


def _raise(error: OSError) -> None:
    raise error


def remove_dead_socket(path: str) -> None:
    """What a process that was killed could not remove itself. path: "" for none."""
    with contextlib.suppress(OSError):
        if path and not listens(path):
            os.unlink(path)  # noqa: PTH108
