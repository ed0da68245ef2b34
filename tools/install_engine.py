#!/usr/bin/env python3
"""Install llama-cpp-python into this virtual environment, from the wheel cache; built into the cache where it lacks.

The tests' engine is the very wheel that travels to nodes.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time

from rbee.base import events
from rbee.base.errors import RbeeError
from rbee.base.settings import Settings
from rbee.setup.base import pip_settings, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels.cache import WheelCache

REPORT_EVERY_S = 10.0


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C does: the compilers end first
        signal.signal(number, signal.default_int_handler)
    wanted = requirements.llama()
    if _installed(wanted.name) == wanted.version:
        return
    cache = WheelCache.of(Settings.from_environment())
    try:
        wheel = asyncio.run(cache.llama_wheel(Target.here(), "cpu", _Report()))
    except RbeeError as error:
        sys.exit(f"{error.message}\n{error.hint}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write(f"{wanted.name} @ {wheel.path.as_uri()} --hash=sha256:{wheel.sha256}\n")
        lock.flush()
        options = ["--no-index", "--no-deps", "--force-reinstall", "--require-hashes", "--requirement", lock.name]
        words = [sys.executable, "-I", "-m", "pip", "--quiet", "install", *options]
        subprocess.run(words, check=True, env={**os.environ, **pip_settings.variables([])})


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class _Report:
    """Says on stderr what goes on, a line every few seconds."""

    def __init__(self) -> None:
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, event: events.Event) -> None:
        if not isinstance(event, events.Progress | events.Notice):
            return
        key = event.key if isinstance(event, events.Progress) else event.text
        now = time.monotonic()
        if key == self._last[0] and now - self._last[1] < REPORT_EVERY_S:
            return
        self._last = (key, now)
        share = f" {event.done:.0f}/{event.total:.0f}" if isinstance(event, events.Progress) and event.total else ""
        sys.stderr.write(f"setup: {event.text}{share}\n")


if __name__ == "__main__":
    main()
