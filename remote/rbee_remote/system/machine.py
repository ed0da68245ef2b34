"""The machine that this runs on, as a `System`."""

from __future__ import annotations

import platform

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system.interface import System


def this_system() -> System:
    """Raises RemoteError NODE_UNSUPPORTED where there is no /proc, and no psutil in its place."""
    if platform.system() == "Linux":
        from rbee_remote.system.linux import LinuxSystem

        return LinuxSystem()
    try:
        from rbee_remote.system.with_psutil import PsutilSystem
    except ImportError as error:
        raise RemoteError(
            ErrorCode.NODE_UNSUPPORTED,
            "processes cannot be listed here without rbee's runtime",
            hint="`rbee nodes check NODE`, or any `rbee infer`, puts it there",
        ) from error
    return PsutilSystem()
