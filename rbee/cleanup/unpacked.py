"""What the one file has unpacked on this machine, this rbee's copy among it: found, checked, and removed.

Rules
- Only folders that tools/one_file/head.sh gives their names, and of these what is this user's own.
- A copy that a process of this machine runs from, or unpacks, stays. Who starts from one that is being removed at that
  moment fails, and succeeds when it is typed again; so does who runs from it on another machine with the same home.
- A copy loses its name at once and whole; what is half removed is nothing that could be started.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rbee.base import installation
from rbee.base.files import file_sha256
from rbee.base.settings import user_home

_FOLDER = "rbee-app"
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: What is being unpacked, by the process of that number, or removed; left where that was ended.
_LEFT_OVER = re.compile(r"\.(?:part-([0-9]+)|removed-[0-9a-f]+)")
#: Made when a copy is unpacked, and made with the list itself.
_UNLISTED = frozenset({installation.HASHES, "pyvenv.cfg"})


@dataclass(frozen=True, slots=True)
class Copy:
    """A folder that holds an unpacked file, or what is left of one. size: bytes on disk."""

    path: Path
    size: int
    used_by: tuple[int, ...]
    is_this: bool
    is_whole: bool


def places() -> list[Path]:
    """Where the one file is unpacked to, the preferred folder first; as head.sh has it."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    first = Path(cache) if cache.startswith("/") else user_home() / ".cache"
    return [first / _FOLDER, *(Path(folder, f"{_FOLDER}-{os.getuid()}") for folder in ("/var/tmp", "/tmp"))]  # noqa: S108


def copies() -> list[Copy]:
    """All of this user."""
    here = installation.unpacked()
    return [
        Copy(
            path,
            disk_size(path),
            _users(path),
            here is not None and path.samefile(here),
            _DIGEST.fullmatch(path.name) is not None,
        )
        for path in _folders()
    ]


def damage(image: Path) -> list[str]:
    """Files of a copy that are not what was unpacked: changed, missing, or added. Reads all of it."""
    lines = (image / installation.HASHES).read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    found = {
        path.relative_to(image).as_posix() for path in image.rglob("*") if path.is_file() and not path.is_symlink()
    }
    changed = {name for name in found & listed.keys() if file_sha256(image / name) != listed[name]}
    return sorted(changed | (found ^ listed.keys()) - _UNLISTED)


def remove(copy: Copy) -> None:
    """Raises OSError."""
    going = copy.path.with_name(f".removed-{secrets.token_hex(4)}")
    copy.path.rename(going)
    shutil.rmtree(going)


def disk_size(folder: Path) -> int:
    """Bytes that `folder` takes; 0 where there is none. A file with several names counts once."""
    seen = dict[tuple[int, int], int]()
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                status = Path(base, name).lstat()
            except OSError:
                continue
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _folders() -> Iterator[Path]:
    for place in places():
        try:
            inside = sorted(place.iterdir())
        except OSError:
            continue
        for path in inside:
            named = _DIGEST.fullmatch(path.name) or _LEFT_OVER.fullmatch(path.name)
            if named and path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid():
                yield path


def _users(path: Path) -> tuple[int, ...]:
    """The processes that run from a copy, or unpack it."""
    unpacking = _LEFT_OVER.fullmatch(path.name)
    if unpacking and unpacking[1] and Path("/proc", unpacking[1]).exists():
        return (int(unpacking[1]),)
    return tuple(sorted(pid for pid, program in _programs() if program.is_relative_to(path)))


def _programs() -> Iterator[tuple[int, Path]]:
    """Of each process that may be looked at, its number and the file that it runs."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            yield int(entry.name), (entry / "exe").readlink()
        except OSError:
            continue
