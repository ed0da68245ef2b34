"""no_new_privs and resource limits: what any process can do to itself, on any kernel."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys

_PR_SET_NO_NEW_PRIVS = 38


def no_new_privs() -> None:
    """From now on no program that this process starts gets rights that it has not: setuid means nothing to it.

    Raises OSError; does nothing elsewhere than on Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    words = (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(*map(ctypes.c_ulong, words)) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")


def no_core() -> None:
    """A crash leaves no file with people's prompts in it."""
    lower(resource.RLIMIT_CORE, 0)


def lower(kind: int, value: int) -> None:
    """Set a limit to `value`, unless it is lower already or the system does not have it."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(kind)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))


def threads() -> int:
    """Of this process; 1 where nobody tells."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names alone
    except OSError:
        return 1
