"""From `git clone` to the first token where rbee never was: with a prebuilt llama.cpp in reach, and building it.

A fresh HOME with empty caches for each of the two. RBEE_NEWCOMER=prebuilt or building runs one alone.
Parts overlap: the model is fetched while llama.cpp is. The wheel comes from the wheel cache, over HTTP on loopback.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.harness import Comparison
from rbee.setup.base.platforms import Target
from rbee.setup.index.asked import ENV_INDEX
from rbee.setup.wheels.cache import WheelCache
from tests.testbed import assets

ROOT = Path(__file__).parent.parent
GOALS_S = {"prebuilt": 60.0, "building": 360.0}
#: The parts of `rbee infer`, by the keys of the progress that it reports.
PARTS = {
    "base.txt": "packages",
    "build.txt": "build tools",
    "source": "source",
    "build": "compile",
    "llama": "wheel",
    "model": "model",
}
#: Its phases that take time.
PHASES = {"node": "node ready", "model": "model checked", "ready": "load", "inference": "first token"}
#: What must not reach a newcomer from whoever runs the benchmark.
PRIVATE = ("RBEE_", "HF_", "XDG_", "VIRTUAL_ENV", "PYTHON")


@dataclass
class Timeline:
    """Seconds of each part. cpu_s: of `rbee infer` and all that it waited for, compilers above all."""

    parts: dict[str, float] = field(default_factory=dict)
    total_s: float = 0.0
    cpu_s: float = 0.0


def measure() -> list[Comparison]:
    chosen = os.environ.get("RBEE_NEWCOMER") or "prebuilt building"
    figures = []
    for way in chosen.split():
        with (
            tempfile.TemporaryDirectory(prefix="rbee-new-") as folder,
            _wheel_index(Path(folder)) as index,
        ):
            figures += _figures(way, _newcomer(Path(folder), index if way == "prebuilt" else {ENV_INDEX: "off"}))
    return figures


def _figures(way: str, timeline: Timeline) -> list[Comparison]:
    """The whole against its goal; its parts, and the processor's time, against nothing but the goal of the whole."""
    goal = GOALS_S[way]
    figures = [Comparison(f"{way}: clone to first token", round(timeline.total_s, 1), goal, "s")]
    figures += [Comparison(f"{way}: {name}", round(seconds, 1), goal, "s") for name, seconds in timeline.parts.items()]
    cores = len(os.sched_getaffinity(0))
    return [*figures, Comparison(f"{way}: processor time of infer", round(timeline.cpu_s, 1), goal * cores, "s")]


def _newcomer(folder: Path, index: dict[str, str]) -> Timeline:
    """All that a newcomer types, below `folder`. Raises CalledProcessError with the output shown."""
    checkout, timeline = folder / "rbee", Timeline()
    env = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    env |= {"HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder / "run"), "PIP_NO_CACHE_DIR": "1", **index}
    (folder / "home").mkdir()
    (folder / "run").mkdir(mode=0o700)
    began = time.monotonic()
    _run(["git", "clone", "--quiet", "--no-local", ROOT, checkout], env)
    timeline.parts["clone"] = time.monotonic() - began
    _run([_python(), checkout / "tools" / "setup_venv.py"], env)
    timeline.parts["venv"] = time.monotonic() - began - timeline.parts["clone"]
    rbee = checkout / ".venv" / "bin" / "rbee"
    try:
        _infer(rbee, env, timeline)
        timeline.total_s = time.monotonic() - began
    finally:
        _run([rbee, "hive", "stop", "local"], env)
    return timeline


def _infer(rbee: Path, env: dict[str, str], timeline: Timeline) -> None:
    """Until the first token; the rest of the answer is waited for."""
    words: list[str | Path] = [rbee, "infer", "--json", "--max-tokens", "1", "Hello"]
    seen: dict[str, tuple[float, float]] = {}
    phases: dict[str, float] = {}
    process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    last = ""
    for line in process.stdout:
        last, now, event = line, time.monotonic(), json.loads(line)
        if event.get("event") == "progress" and event["key"] in PARTS:
            seen[event["key"]] = (seen.get(event["key"], (now, now))[0], now)
        elif event.get("event") == "notice":
            print(event["text"], flush=True)
        elif event.get("event") == "phase_done" and event["name"] in PHASES:
            phases[PHASES[event["name"]]] = event["seconds"]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, words, last)
    timeline.parts |= {PARTS[key]: end - begin for key, (begin, end) in seen.items()} | phases
    timeline.cpu_s = usage.ru_utime + usage.ru_stime


def _run(words: list[str | Path], env: dict[str, str]) -> None:
    done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
        done.check_returncode()


def _python() -> str:
    """The system's, as a newcomer has it: not that of a virtual environment."""
    return str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


@contextmanager
def _wheel_index(folder: Path) -> Iterator[dict[str, str]]:
    """The variable that names an index on loopback, which has this machine's wheel."""
    root = folder / "index"
    target = root / "cpu" / "llama-cpp-python"
    target.mkdir(parents=True)
    wheel = WheelCache(assets.wheel_cache(), folder).find_llama(Target.here(), "cpu")
    if wheel is None:
        raise SystemExit("there is no llama.cpp wheel in the cache; `make dev` builds it")
    shutil.copy(wheel.path, target)
    (target / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>', encoding="utf-8")
    handler = partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        digest = hashlib.sha256(wheel.path.read_bytes()).hexdigest()
        try:
            yield {ENV_INDEX: f"http://127.0.0.1:{server.server_port}#sha256={digest}"}
        finally:
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""
