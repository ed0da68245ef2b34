"""What lies in rbee's folders on a node, by kind; and that which may be of no use is told with its size and age.

Rules
- Only names that rbee itself gives are looked at; everything else there belongs to the user.
- Symbolic links are never followed below home and run_dir: each folder is opened in the one above it.
- A catalogued model, the hive's log, the audit log and the lock are never listed: they are kept.
- Bounded: so many entries of a folder, and of all folders whose size is counted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee_remote.protocol import FileSeen
from rbee_remote.protocol.splits import first_part, parts_of
from rbee_remote.sweep.processes import Ours
from rbee_remote.sweep.usage import Usage
from rbee_remote.system.interface import System
from rbee_remote.system.model_files import UNNEEDED
from rbee_remote.system.unix_socket import listens

#: Of one folder; the rest is seen when these are gone.
MAX_ENTRIES = 20_000
#: Of all folders whose sizes are counted. A runtime has three thousand.
MAX_COUNTED = 200_000

#: `upload.part_of`; two numbers more where the keeper's own machine is the node.
_UPLOAD = re.compile(r"[\w.+-]+\.part-[0-9A-Za-z_-]+-[0-9a-f]{8}(-\d+-\d+)?")
_PROBE_FILE = re.compile(r"\.rbee-probe-\d+")
_PAYLOAD = re.compile(r"[0-9a-f]{16}\.zip")
_UV = re.compile(r"uv-[0-9][\w.+-]*")
_STAGING = re.compile(r"\.(staging|removed)-[\w.-]+")
_RUNTIME = re.compile(r"[\w+-][\w.+-]*")
_PYTHON = re.compile(r"\w[\w.+-]*")
_DOWNLOAD = re.compile(r"[\w.+-]+\.gguf\.part(\.json)?")
_INCOMING = re.compile(r"incoming-[0-9a-f]{32}(-[0-9]{5}-of-[0-9]{5})?\.gguf")
_MODEL = re.compile(r"[0-9a-f]{64}(-[0-9]{5}-of-[0-9]{5})?\.gguf(" + re.escape(UNNEEDED) + r")?")
_RECORD = re.compile(r"[0-9a-f]{32}\.json")
_RECORD_BEING_WRITTEN = re.compile(r"\.[0-9a-f]{32}\.json\.\w+")
_WORKER_LOG = re.compile(r"worker-([0-9a-f]{16})\.log(\.1)?")
_SOCKET = re.compile(r"hive\.sock|worker-[0-9a-f]{16}\.(sock|keeper)|\.\d+")

#: What in runtimes/ is none.
_NOT_RUNTIMES = ("wheels", "python")

_MAX_RECORD = 1 << 20

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder of a kind that can be tidied. folder: its place below the base, as words; base: home or run_dir,
    as the keeper names it."""

    kind: str
    base: str
    folder: tuple[str, ...]
    name: str
    status: os.stat_result

    @property
    def path(self) -> str:
        return "/".join((self.base.rstrip("/"), *self.folder, self.name))

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def identity(self) -> str:
        return identity_of(self.status)


def identity_of(status: os.stat_result) -> str:
    """Another one for what lies at the same path later, and for the same after it was used or written to."""
    return f"{status.st_dev}.{status.st_ino}.{stat.S_IFMT(status.st_mode)}.{status.st_mtime_ns}.{status.st_ctime_ns}"


def see(system: System, home: str, run_dir: str, ours: Sequence[Ours]) -> list[FileSeen]:
    """As the keeper is told, in the order of the paths."""
    usage = Usage.of(system, home, run_dir, ours)
    alive = {one.command.instance for one in ours if one.command.instance}
    left = _Budget(MAX_COUNTED)
    now = system.clock()
    return [
        _seen(found, now, usage, left)
        for found in sorted(scan(home, run_dir), key=lambda found: found.path)
        if not is_log_of(found, alive)
    ]


def scan(home: str, run_dir: str) -> Iterator[Found]:
    """Everything that can be tidied, used or not."""
    catalogued, is_whole = _catalogued(home)
    for folder, kind_of in _PLACES.items():
        for found in _of_folder(home, folder, kind_of):
            if found.name not in catalogued and (is_whole or found.kind != "model"):
                yield found
    pythons = os.path.realpath(f"{home}/runtimes/python")
    needed = _needed_pythons(home, pythons)
    yield from _of_folder(home, ("runtimes", "python"), lambda entry, _: _kind_in_pythons(entry, needed))
    with contextlib.suppress(OSError), opened(home, ("runtimes", "wheels")) as descriptor:
        for entry in _entries(descriptor):
            if stat.S_ISDIR(entry.st_mode):
                yield from _of_folder(home, ("runtimes", "wheels", entry.name), _kind_of_upload)
    yield from _of_folder(run_dir, (), lambda entry, _: "socket" if _is_socket(entry) else "")


def is_log_of(found: Found, alive: set[str]) -> bool:
    """Whether it is the log of a worker that runs."""
    match = _WORKER_LOG.fullmatch(found.name)
    return found.kind == "log" and match is not None and match[1] in alive


# --- kinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    status: os.stat_result

    @property
    def st_mode(self) -> int:
        return self.status.st_mode


#: The kind of an entry, "" for what is not to be touched; with the descriptor of its folder.
_KindOf = Callable[[_Entry, int], str]


def _kind_of_upload(entry: _Entry, _: int) -> str:
    is_file = stat.S_ISREG(entry.st_mode)
    return "part" if is_file and (_UPLOAD.fullmatch(entry.name) or _PROBE_FILE.fullmatch(entry.name)) else ""


def _kind_in_payloads(entry: _Entry, folder: int) -> str:
    if stat.S_ISREG(entry.st_mode) and _PAYLOAD.fullmatch(entry.name):
        return "payload"
    return _kind_of_upload(entry, folder)


def _kind_in_runtimes(entry: _Entry, folder: int) -> str:
    if stat.S_ISREG(entry.st_mode):
        return _kind_of_upload(entry, folder) or ("uv" if _UV.fullmatch(entry.name) else "")
    if not stat.S_ISDIR(entry.st_mode):
        return ""
    if _STAGING.fullmatch(entry.name):
        return "staging"
    if entry.name in _NOT_RUNTIMES:
        return "wheels" if entry.name == "wheels" else ""
    is_runtime = _RUNTIME.fullmatch(entry.name) and _has(folder, f"{entry.name}/pyvenv.cfg")
    return "runtime" if is_runtime else ""


def _kind_in_pythons(entry: _Entry, needed: set[str]) -> str:
    """One that was brought or fetched is of use as long as a runtime is made from it."""
    is_python = stat.S_ISDIR(entry.st_mode) and _PYTHON.fullmatch(entry.name)
    return "python" if is_python and entry.name not in needed else ""


def _needed_pythons(home: str, pythons: str) -> set[str]:
    """The names of those in the folder `pythons` that runtimes, or what becomes one, start with."""
    runtimes = Path(home, "runtimes")
    links = [link for place in ("*", ".staging-*/venv") for link in runtimes.glob(f"{place}/bin/python")]
    return {os.path.relpath(os.path.realpath(link), pythons).partition("/")[0] for link in links}


def _kind_in_models(entry: _Entry, folder: int) -> str:
    if not stat.S_ISREG(entry.st_mode):
        return ""
    if _DOWNLOAD.fullmatch(entry.name) or _INCOMING.fullmatch(entry.name):
        return "download"
    if _MODEL.fullmatch(entry.name):
        return "model"  # catalogued ones are left out
    return "part" if _RECORD_BEING_WRITTEN.fullmatch(entry.name) else _kind_of_upload(entry, folder)


def _kind_in_log(entry: _Entry, _: int) -> str:
    return "log" if stat.S_ISREG(entry.st_mode) and _WORKER_LOG.fullmatch(entry.name) else ""


_PLACES: dict[tuple[str, ...], _KindOf] = {
    (): _kind_of_upload,
    ("payloads",): _kind_in_payloads,
    ("runtimes",): _kind_in_runtimes,
    ("models",): _kind_in_models,
    ("log",): _kind_in_log,
}


def _is_socket(entry: _Entry) -> bool:
    return stat.S_ISSOCK(entry.st_mode) and _SOCKET.fullmatch(entry.name) is not None


def _catalogued(home: str) -> tuple[set[str], bool]:
    """Names of files that a record names, and whether all records could be read: a model that is not named by those
    alone may be the other one's."""
    names: set[str] = set()
    is_whole = False
    with contextlib.suppress(OSError), opened(home, ("models",)) as folder:
        entries = _entries(folder)
        is_whole = len(entries) < MAX_ENTRIES
        for entry in entries:
            if not _RECORD.fullmatch(entry.name):
                continue
            try:
                path = json.loads(_content(entry.name, folder)).get("path", "")
                names.update(parts_of(os.path.basename(str(path))))  # noqa: PTH119
            except (OSError, ValueError, AttributeError):
                is_whole = False
    return names, is_whole


def _content(name: str, folder: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        return file.read(_MAX_RECORD)


# --- folders ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(base: str, folder: Sequence[str]) -> Iterator[int]:
    """A descriptor of a folder below `base`, no step of which is a symbolic link. Raises OSError."""
    descriptor = os.open(os.path.realpath(base), _FOLDER)
    try:
        for name in folder:
            above, descriptor = descriptor, os.open(name, _FOLDER, dir_fd=descriptor)
            os.close(above)
        yield descriptor
    finally:
        os.close(descriptor)


def _of_folder(base: str, folder: tuple[str, ...], kind_of: _KindOf) -> Iterator[Found]:
    """Nothing where the folder is missing, a link, or somebody else's."""
    with contextlib.suppress(OSError), opened(base, folder) as descriptor:
        for entry in _entries(descriptor):
            if kind := kind_of(entry, descriptor):
                yield Found(kind, base, folder, entry.name, entry.status)


def _entries(descriptor: int) -> list[_Entry]:
    found = []
    with os.scandir(descriptor) as entries:
        for entry in itertools.islice(entries, MAX_ENTRIES):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                found.append(_Entry(entry.name, entry.stat(follow_symlinks=False)))
    return found


def _has(folder: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


# --- how large, how old, who uses it ----------------------------------------------------------------------------------


class _Budget:
    """Entries that may still be counted."""

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def take(self) -> bool:
        self.entries -= 1
        return self.entries >= 0


def _seen(found: Found, now: float, usage: Usage, left: _Budget) -> FileSeen:
    size, changed = found.status.st_size, found.status.st_mtime
    if found.is_folder:
        size, newest = _measure(found, now, left)
        if found.kind != "runtime":  # whoever uses a runtime touches it; what lies in it is as old as its wheels
            changed = max(changed, newest)
    user = usage.user(found.path)
    if found.kind == "socket" and not user and listens(found.path):
        user = "whoever listens there"
    if found.kind == "model":  # a file of long ago may have been linked here, or renamed, a moment ago
        changed = max(changed, found.status.st_ctime, _noted_at(found))
    idle = max(now - changed, 0.0)  # a clock that was set back makes files of tomorrow
    return FileSeen(found.kind, found.path, size, round(idle, 1), found.identity, user)


def _noted_at(found: Found) -> float:
    """When a hive said last that it deletes the model once no worker has it; 0 where none does. It may be another
    machine's, whose workers are not seen here."""
    note = first_part(found.name.removesuffix(UNNEEDED)) + UNNEEDED
    with contextlib.suppress(OSError), opened(found.base, found.folder) as folder:
        return os.stat(note, dir_fd=folder, follow_symlinks=False).st_mtime
    return 0.0


def _measure(found: Found, now: float, left: _Budget) -> tuple[int, float]:
    """(bytes, latest change that is not in the future) of what is in a folder, as far as that is counted."""
    size, newest = 0, 0.0
    with contextlib.suppress(OSError), opened(found.base, found.folder) as above:
        for _, _, files, descriptor in os.fwalk(found.name, dir_fd=above, follow_symlinks=False):
            for name in files:
                if not left.take():
                    return size, newest
                with contextlib.suppress(OSError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    size += status.st_size
                    newest = max(newest, status.st_mtime if status.st_mtime <= now else 0.0)
    return size, newest
