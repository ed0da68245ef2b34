"""`rbee top` with a thousand nodes: what the process takes of a core while each of them tells of itself every second.

The nodes are scripted, in another process, each behind a unix socket of its own: HTTP and events are a hive's, and SSH
is left out. The screen is a real pseudo-terminal of 80 by 24.
"""

from __future__ import annotations

import contextlib
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness import Comparison

NODES = 1000
#: Seconds for all to be connected to, and of one measurement.
SETTLE_S, SPAN_S = 120.0, 10.0
ROUNDS = 5
COLUMNS, LINES = 80, 24


def measure() -> list[Comparison]:
    with tempfile.TemporaryDirectory(prefix="rbee-top-", dir="/tmp") as name:
        folder = Path(name)
        with _started("benchmarks.scripted_hives", folder, terminal=None):
            _until((folder / "serving").exists)
            controller, terminal = pty.openpty()
            with _started("benchmarks.scripted_top", folder, terminal=terminal) as watching:
                os.close(terminal)
                os.set_blocking(controller, False)
                shares = _shares(watching, controller, folder)
                os.close(controller)
    middle = statistics.median(shares)
    figure = Comparison(
        f"{NODES} nodes that tell every second",
        round(middle, 3),
        0.2,
        "of a core",
        ours=tuple(shares),
        samples_in="cores",
    )  # fmt: skip
    return [figure]


def _shares(watching: subprocess.Popen[bytes], controller: int, folder: Path) -> list[float]:
    """Seconds of the processor for each second, in some spans after all nodes are up."""
    _until(lambda: _drained(controller) and (folder / "all-up").exists())
    process, found = psutil.Process(watching.pid), []
    for _ in range(ROUNDS):
        began, before = time.monotonic(), _spent(process)
        while time.monotonic() - began < SPAN_S:
            _drained(controller)
            time.sleep(0.1)
        found.append(round((_spent(process) - before) / (time.monotonic() - began), 4))
    return found


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _drained(controller: int) -> bool:
    """Read what was drawn, as a terminal does."""
    with contextlib.suppress(BlockingIOError):
        while os.read(controller, 65536):
            pass
    return True


@contextlib.contextmanager
def _started(module: str, folder: Path, *, terminal: int | None) -> Iterator[subprocess.Popen[bytes]]:
    stream = subprocess.DEVNULL if terminal is None else terminal
    environment = os.environ | {"TERM": "xterm-256color", "RBEE_HOME": str(folder / "home"), "RBEE_LINK": "off"}
    words = [sys.executable, "-m", module, str(folder), str(NODES)]
    process = subprocess.Popen(words, stdin=stream, stdout=stream, env=environment)
    try:
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"{module} ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def _until(condition: object) -> None:
    until = time.monotonic() + SETTLE_S
    assert callable(condition)
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the nodes were not connected to in time")
        time.sleep(0.1)
