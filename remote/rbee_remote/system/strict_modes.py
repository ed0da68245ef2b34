"""Whether somebody else could replace a folder of ours, or what stands in it.

The rule is OpenSSH's (StrictModes): what leads to it belongs to this user or root, and nobody else can write it; a
group that is this user's alone is nobody else. Links are followed one by one, and count themselves. A folder on the way
may be as /tmp is (sticky): there, others cannot touch what is ours. `strict_modes.sh` has the same rule in sh.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

_MOST_LINKS = 40


def unsafe_because(path: Path) -> str:
    """What is wrong, as a sentence without a full stop; "" where only this user and root can change `path`.

    path: absolute. Where it does not exist, what there is of the way to it counts. Raises OSError.
    """
    last = Path(os.path.realpath(path))
    for place in _leading_to(path):
        status = place.lstat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to somebody else"
        if not stat.S_ISLNK(status.st_mode) and _others_write(status, is_last=place == last):
            return f"{place} can be changed by others: chmod go-w {place}"
    return ""


def _leading_to(path: Path) -> Iterator[Path]:
    """Every folder and link on the way to `path`, as far as they exist, / first."""
    yield Path("/")
    at, left, links = Path("/"), list(path.parts[1:]), 0
    while left:
        part = left.pop(0)
        if part == "..":
            at = at.parent
            continue
        place = at / part
        if not os.path.lexists(place):
            return
        yield place
        if not place.is_symlink():
            at = place
            continue
        links += 1
        if links > _MOST_LINKS:
            return
        target = place.readlink()
        at = Path("/") if target.is_absolute() else at
        left[:0] = target.parts[1:] if target.is_absolute() else target.parts


def _others_write(status: os.stat_result, *, is_last: bool) -> bool:
    if status.st_mode & stat.S_ISVTX and not is_last:
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid)


def _is_private(gid: int) -> bool:
    """Whether a group is this user's alone, as many systems give each user one."""
    with contextlib.suppress(KeyError):
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
        own = user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
        return own and not any(other.pw_gid == gid and other.pw_uid != user.pw_uid for other in pwd.getpwall())
    return False
