"""Telling others that files are in use: those of another machine that has the same home, above all.

A clean-up sees what runs on its own machine. What runs elsewhere, from the same payload and runtime, it sees by their
times of change: whoever uses them touches them, at start and every hour.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

INTERVAL_S = 3600.0


def touch_used(home: Path) -> None:
    """Touch the payload and the runtime that this process runs from, where they lie in `home`."""
    payload, runtime = Path(__file__).parents[2], Path(sys.prefix)
    real = home.resolve()
    for path, folder in ((payload, "payloads"), (runtime, "runtimes")):
        if path.resolve().parent == real / folder:
            # A home that cannot be written cannot be cleaned up either.
            with contextlib.suppress(OSError):
                os.utime(path)
