"""Landlock by its three system calls. https://docs.kernel.org/userspace-api/landlock.html

A kernel knows some of the rights, by its ABI's number; the others are left out of what is asked for, so a right that it
does not know is not denied either.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

# The same on every architecture: they are younger than the common table of numbers.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15

#: From which ABI on how many rights for files there are, those of an ABI being the lowest bits.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
#: Binding and connecting TCP, from ABI 4 on; abstract sockets and signals to others, from ABI 6 on.
_NET_ABI, _NET_RIGHTS = 4, 0b11
_SCOPE_ABI, _SCOPES = 6, 0b11
#: Rights that a file itself can have; the others are a folder's.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


@dataclass(frozen=True, slots=True)
class Rule:
    """rights: for what lies at `path` and below it."""

    path: str
    rights: int


def abi() -> int:
    """The kernel's, 0 where it has no Landlock, or a container does not let us ask."""
    if not sys.platform.startswith("linux"):
        return 0
    with suppress(OSError):
        return _call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    return 0


def keeps_signals() -> bool:
    """Whether who is restricted can signal itself and its children alone, as far as Landlock is asked."""
    return abi() >= _SCOPE_ABI


def restrict(rules: Sequence[Rule]) -> None:
    """From now on this thread may do with files what `rules` say, use no TCP, and signal and reach nobody outside.

    Paths that are not there are passed over. It needs no_new_privs. Raises OSError, and nothing has changed.
    """
    version = abi()
    rights = (1 << _FS_RIGHTS[max(known for known in _FS_RIGHTS if known <= version)]) - 1 if version else 0
    fields = [rights, *[_NET_RIGHTS] * (version >= _NET_ABI), *[_SCOPES] * (version >= _SCOPE_ABI)]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for rule in rules:
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _allow(ruleset, rule, rights)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, rule: Rule, known: int) -> None:
    descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    try:
        of_kind = known if stat.S_ISDIR(os.fstat(descriptor).st_mode) else known & _OF_FILES
        allowed = rule.rights & of_kind
        if allowed:
            _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments]
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return int(result)
