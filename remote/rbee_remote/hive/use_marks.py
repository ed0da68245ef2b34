"""Telling others that files are in use: those of another machine that has the same home, above all.

A clean-up sees what runs on its own machine. What runs elsewhere, from the same payload and runtime, it sees by their
times of change: whoever uses them touches them, at start and every hour. A clean-up waits for twice as long at least.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import anyio

INTERVAL_S = 3600.0

_log = logging.getLogger(__name__)


async def keep_touching(home: Path) -> None:
    """Runs until cancelled."""
    while True:
        touch_used(home)
        await anyio.sleep(INTERVAL_S)


def touch_used(home: Path) -> None:
    """Touch the payload and the runtime that this process runs from, where they lie in `home`."""
    payload, runtime = Path(__file__).parents[2], Path(sys.prefix)
    real = home.resolve()
    for path, folder in ((payload, "payloads"), (runtime, "runtimes")):
        if path.resolve().parent == real / folder:
            try:
                os.utime(path)
            except OSError as error:
                _log.warning("%s cannot be marked as in use: %s", path, error)
