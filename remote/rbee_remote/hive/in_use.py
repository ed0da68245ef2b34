"""A hive's sign that its payload and its runtime are in use, for machines that share its home and cannot see it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import anyio

import rbee_remote

#: Seconds between two signs. A clean-up waits for twice as long at least.
INTERVAL_S = 3600.0

_log = logging.getLogger(__name__)


async def keep_young(home: Path) -> None:
    """Runs until cancelled."""
    while True:
        touch(home, Path(rbee_remote.__file__).parent.parent, Path(sys.prefix))
        await anyio.sleep(INTERVAL_S)


def touch(home: Path, *paths: Path) -> None:
    """Make those of the paths that lie in `home` as young as can be."""
    for path in paths:
        if path.is_relative_to(home):
            try:
                os.utime(path)
            except OSError as error:
                _log.warning("%s cannot be marked as in use: %s", path, error)
