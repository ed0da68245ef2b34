"""Measure things in turn, compare their medians, tell on which machine.

Machines are shared and noisy, so a figure is a ratio of two things that were run in turn, in one run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure. value: ours over theirs, or in `unit` where nothing is compared. goal: at most this; least: no less.

    samples_in: the unit of ours and theirs.
    """

    name: str
    value: float
    goal: float
    unit: str = "x"
    against: str = ""
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    least: float = 0.0
    samples_in: str = "s"

    @property
    def reached(self) -> bool:
        return self.least <= self.value <= self.goal


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    figures: list[Comparison]
    machine: dict[str, object]

    def table(self) -> str:
        rows = [("what", "ours", "against", "theirs", "figure", "goal", "")]
        for figure in self.figures:
            ours, theirs = (_median(samples, figure.samples_in) for samples in (figure.ours, figure.theirs))
            goal = f"{f'{figure.least:g} to' if figure.least else '<='} {figure.goal:g} {figure.unit}"
            verdict = "reached" if figure.reached else "missed"
            rows.append((figure.name, ours, figure.against, theirs, f"{figure.value:.2f} {figure.unit}", goal, verdict))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"== {self.name}", *lines])

    def write(self, folder: Path = RESULTS) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.name}.json"
        figures = [asdict(figure) | {"reached": figure.reached} for figure in self.figures]
        path.write_text(json.dumps({"name": self.name, "figures": figures, "machine": self.machine}, indent=2) + "\n")
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def in_turn(things: Mapping[str, Callable[[], float | None]], rounds: int = ROUNDS) -> dict[str, tuple[float, ...]]:
    """Run each thing once per round, one after the other; seconds of each.

    A thing that returns a number has measured itself (its preparation is not counted); else its call is timed.
    """
    samples: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            start = time.perf_counter()
            own = thing()
            samples[name].append(time.perf_counter() - start if own is None else own)
    return {name: tuple(round(value, 5) for value in values) for name, values in samples.items()}


def compare(name: str, samples: Mapping[str, tuple[float, ...]], ours: str, theirs: str, goal: float) -> Comparison:
    ratio = statistics.median(samples[ours]) / statistics.median(samples[theirs])
    return Comparison(name, round(ratio, 3), goal, "x", theirs, samples[ours], samples[theirs])


def command(*words: str | Path, env: Mapping[str, str] | None = None) -> Callable[[], None]:
    """A thing that runs a command to its end; raises CalledProcessError, with its output shown, when that fails."""

    def run() -> None:
        done = subprocess.run(words, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
            done.check_returncode()

    return run


def machine() -> dict[str, object]:
    """What one has to know about this machine to judge a figure; nothing that names it."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    os_release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "os": os_release.get("PRETTY_NAME", platform.system()),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "openssh": _openssh(),
        "versions": {name: found for name in ("rbee", "asyncssh", "httpcore", "uv") if (found := _version(name))},
    }


def _version(name: str) -> str:
    """ "" for what is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _openssh() -> str:
    if not shutil.which("ssh"):
        return ""
    shown = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    return shown.split(",")[0].strip()


def _median(samples: tuple[float, ...], unit: str) -> str:
    return f"{statistics.median(samples):.3f} {unit}" if samples else ""
