"""Whether a file of this machine can be believed: who else may have written it, or can put another in its place.

Rules
- OpenSSH's: a file is its user's or root's, and nobody else may write to it. So is every folder on the way to it, up to
  the user's home folder, above which things are the administrator's (`safe_path` in OpenSSH's misc.c).
- A group may write where it is the user's own: the primary one, of the user's name, without another member. Debian and
  its kin make such a group for each user, and their ssh accepts it too.
- Wider than OpenSSH: in a folder like /tmp, where the sticky bit lets only owners rename what is theirs, each entry
  counts by its own owner. Stricter: symbolic links are followed one by one, and every folder they lie in counts.
- In a user namespace without root (apptainer, bwrap, `unshare -U`) root's folders show as nobody's: those on the way
  are taken for root's. What they lead to is never taken for it.
- What is read is looked at again once it is open. Before that nothing is opened that somebody else may have put there,
  and nothing that is opened is waited for: a FIFO would never answer.
- Some files are read by every warm `infer`: a look costs one system call for each part of a path, and no import.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.base.errors import ConfigError

if TYPE_CHECKING:
    import grp
    import pwd

#: As many symbolic links on the way as Linux follows.
_MOST_LINKS = 40
#: How often a file may be replaced between the look at its name and the one at what was opened.
_MOST_LOOKS = 20
#: Tags of the entries of an access control list that name somebody (linux/posix_acl.h).
_ACL_USER, _ACL_GROUP = 2, 8


class Fault(Enum):
    """Why something is not trusted."""

    FOREIGN = "belongs to"
    GROUP = "can be written by the group"
    OTHERS = "can be written by everybody"
    LISTED = "can be written by those in its access control list"


def fault(status: os.stat_result, uid: int, is_private: Callable[[int], bool]) -> Fault | None:
    """What is wrong with a file or folder for user `uid`. is_private: whether a group has no other member, by gid."""
    if status.st_uid not in (0, uid):
        return Fault.FOREIGN
    if stat.S_ISLNK(status.st_mode):  # its mode says nothing
        return None
    if status.st_mode & stat.S_IWOTH:
        return Fault.OTHERS
    if status.st_mode & stat.S_IWGRP and not is_private(status.st_gid):
        return Fault.GROUP
    return None


def is_exposed(status: os.stat_result, uid: int) -> bool:
    """Whether a secret of user `uid` can be read by others. As in ssh's `sshkey_perm_ok`, only the own ones count: who
    keeps a key for several users has decided who may read it."""
    return status.st_uid == uid and bool(status.st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def is_own_group(
    user: pwd.struct_passwd, group: grp.struct_group, everybody: Callable[[], Iterable[pwd.struct_passwd]]
) -> bool:
    """Whether nobody but `user` is in `group`. everybody: all users that the system can list, asked last."""
    return (
        (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name)
        and set(group.gr_mem) <= {user.pw_name}
        and all(other.pw_uid == user.pw_uid for other in everybody() if other.pw_gid == group.gr_gid)
    )


def _listed(path: str | Path, status: os.stat_result) -> Fault | None:
    """Whether a list lets another user or group write. Where one does, the mode says so of the group: it is the list's
    mask then, and `chmod go-w` takes the right from all of them."""
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & stat.S_IWGRP or not hasattr(os, "getxattr"):
        return None
    try:
        entries = os.getxattr(path, "system.posix_acl_access")[4:]
    except OSError:
        return None  # there is none, or the file system has no such lists
    for at in range(0, len(entries) - 7, 8):
        tag, rights, number = (int.from_bytes(entries[at + a : at + b], "little") for a, b in ((0, 2), (2, 4), (4, 8)))
        is_other = (tag == _ACL_USER and number not in (0, os.getuid())) or (
            tag == _ACL_GROUP and not _is_private(number)
        )
        if is_other and rights & 2:
            return Fault.LISTED
    return None


def check(path: Path, what: str) -> os.stat_result | None:
    """See that nobody else decides what is at `path`; its status, None where nothing is there.

    what: it in words, for the error, such as "the inventory". Raises ConfigError.
    """
    steps = list(_steps(path))
    for at, status, is_end in steps:
        found = fault(status, os.getuid(), _is_private)
        if found is Fault.FOREIGN and not is_end and status.st_uid == _unmapped_root():
            found = fault(_as_roots(status), os.getuid(), _is_private)
        found = found or _listed(at, status)
        if found is None or (found is not Fault.FOREIGN and not is_end and status.st_mode & stat.S_ISVTX):
            continue
        if not _is_above_home(at, {step for step, _, _ in steps}):
            raise _refused(found, path, what, at, status)
    return next((status for _, status, is_end in steps if is_end), None)


def check_entry(path: Path, what: str) -> None:
    """As `check`, for what lies in a folder that was checked. Raises ConfigError."""
    try:
        status = path.lstat()
    except OSError:
        return  # missing, or not to be looked at: opening it will say so
    if stat.S_ISLNK(status.st_mode):
        check(path, what)
    else:
        judge(status, path, what)


def judge(status: os.stat_result, path: Path, what: str) -> None:
    """As `check`, for what is open by now. Raises ConfigError."""
    if found := fault(status, os.getuid(), _is_private) or _listed(path, status):
        raise _refused(found, path, what, str(path.absolute()), status)


def read(path: Path, what: str) -> bytes:
    """The content of a file that nobody else decides. Raises ConfigError as `check`, and OSError."""
    for _ in range(_MOST_LOOKS):
        seen = check(path, what)
        with os.fdopen(open_at_once(path), "rb") as file:
            status = os.fstat(file.fileno())
            judge(status, path, what)
            os.set_blocking(file.fileno(), True)
            if not _has_name(status) or (seen and os.path.samestat(seen, status)):
                return file.read()
    raise ConfigError(f"{what} {path} keeps being replaced", hint="try again when whoever writes it is done")


def open_at_once(path: Path) -> int:
    """A descriptor to read from. Where somebody put a FIFO it is there at once, too: one waits for nobody to write.

    It does not wait for what is read either, until `os.set_blocking`. Raises OSError.
    """
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


def _has_name(status: os.stat_result) -> bool:
    """Not a pipe, nor a file that was removed (`<<<` in a shell makes either)."""
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 0


def _steps(path: Path) -> Iterator[tuple[str, os.stat_result, bool]]:
    """All that leads to `path` from the root on, as far as it exists: folders, links, what links lead to.

    The third value is True for what `path` stands for, at its end.
    """
    at, links = "/", 0
    rest = path.absolute().parts[:0:-1]
    yield at, os.lstat(at), not rest
    left = list(rest)
    while left:
        name = left.pop()
        if name == "..":
            at = at.rpartition("/")[0] or "/"
            continue
        here = f"{at.rstrip('/')}/{name}"
        try:
            status = os.lstat(here)
            is_link = stat.S_ISLNK(status.st_mode)
            target = os.readlink(here) if is_link else ""  # noqa: PTH115 - text, as the rest
        except OSError:
            return
        yield here, status, not left and not is_link
        if not is_link:
            at = here
        elif (links := links + 1) > _MOST_LINKS:
            return
        else:
            at = "/" if target.startswith("/") else at
            left += [part for part in reversed(target.split("/")) if part not in ("", ".")]


def _is_above_home(at: str, steps: set[str]) -> bool:
    """Whether the way led through the user's home folder, and `at` is a folder above it."""
    home = os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111 - Path raises where there is none
    return home in steps and home != at and home.startswith(f"{at.rstrip('/')}/")


@functools.cache
def _unmapped_root() -> int | None:
    """As whom root's folders show in a user namespace that has no root; None where it has one.

    So do those of all others that it does not know, who cannot be told apart: see `check`.
    """
    try:
        with open("/proc/self/uid_map") as uid_map, open("/proc/sys/kernel/overflowuid") as overflow:  # noqa: PTH123
            if any(int(line.split()[0]) == 0 for line in uid_map):
                return None
            return int(overflow.read())
    except (OSError, ValueError, IndexError):
        return None


def _as_roots(status: os.stat_result) -> os.stat_result:
    return os.stat_result((*status[:4], 0, *status[5:10]))


@functools.cache
def _is_private(gid: int) -> bool:
    import grp
    import pwd

    try:
        return is_own_group(pwd.getpwuid(os.getuid()), grp.getgrgid(gid), pwd.getpwall)
    except KeyError:
        return False


def _refused(found: Fault, path: Path, what: str, at: str, status: os.stat_result) -> ConfigError:
    """The error, with the command that mends it."""
    from shlex import quote

    is_itself = at == str(path.absolute())
    owner, group = _user(status.st_uid), _group(status.st_gid)
    who = {Fault.FOREIGN: f" {owner}", Fault.GROUP: f" {group}", Fault.OTHERS: "", Fault.LISTED: ""}[found]
    hint = f"{'' if status.st_uid == os.getuid() else 'sudo '}chmod go-w {quote(at)}"
    if found is Fault.FOREIGN and is_itself:
        hint = f"run rbee as {owner}, or see what is in it, then: sudo chown {_user(os.getuid())} {quote(at)}"
    elif found is Fault.FOREIGN:  # whose folder is not to be changed for our sake
        hint = f"run rbee as {owner}, or use a folder of your own"
    return ConfigError(
        f"{what} {path} is not used: {'it' if is_itself else at} {found.value}{who}",
        hint=hint,
        details={"file": str(path), "because_of": at},
    )


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
