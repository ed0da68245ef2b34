"""One step on the GPU machine: `python -m benchmarks.gpu STEP`, which run.sh calls in an environment from the pack."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import build, shape, speed
from benchmarks.gpu.node import NAME, gpu_node
from benchmarks.gpu.work import Work
from benchmarks.harness import Comparison, Report, machine
from rbee_remote.hive.fit.resources import gpus

LARGE = "qwen2.5-7b"
#: The status of a build that the next call goes on with: EX_TEMPFAIL.
UNFINISHED = 75
#: Seconds from a bare node to the first token, the model being there; and once all runs.
COLD_S, WARM_S = 60.0, 1.0


def main() -> None:
    steps: dict[str, Callable[[Work, argparse.Namespace], int]] = {
        "build": _build,
        "model": _model,
        "node": _node,
        "tests": _tests,
        "speed": _speed,
    }
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh", description="One step on a GPU machine.")
    parser.add_argument("step", choices=steps)
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu"), help="cpu for a rehearsal")
    parser.add_argument("--shape", default=LARGE, choices=shape.SHAPES, help="of the model whose speed counts")
    parser.add_argument(
        "--limit",
        type=float,
        default=build.LIMIT_S,
        metavar="SECONDS",
        help="of one call's build, which the next goes on with",
    )
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    work = Work(asked.work, asked.pack, asked.backend)
    work.write()
    work.enter()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what a step began it ends
    try:
        status = steps[asked.step](work, asked)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd[:5]))} … ended with {error.returncode}; its last words stand above")
        status = 1
    print(f"{asked.step}: {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(status)


def _build(work: Work, asked: argparse.Namespace) -> int:
    try:
        build.build(work, asked.limit)
    except build.UnfinishedError as error:
        print(f"build: {error}", flush=True)
        return UNFINISHED
    return 0


def _model(work: Work, asked: argparse.Namespace) -> int:
    from benchmarks.gpu import model

    work.model("").parent.mkdir(exist_ok=True)
    for name in dict.fromkeys(("small", "other", asked.shape)):
        if not work.model(name).exists():
            model.write(work.model(name), shape.SHAPES[name], build.vocabulary(work))
        print(f"{name}: {work.model(name).stat().st_size / 1e9:.2f} GB", flush=True)
    return 0


def _node(work: Work, _: argparse.Namespace) -> int:
    """From bare to the first token, as a user sees it."""
    with gpu_node(work) as node, node.keeper() as rbee:
        words = ("infer", "--node", NAME, "--json", "--max-tokens", "32", "Why is the sky blue?")
        cold, warm = (rbee(*words).lines()[-1]["timings"] for _ in range(2))
        (info,) = rbee("workers", "list", "--json").json()
        print(f"backend {info['backend']}, device {info['device']}\ncold {cold}\nwarm {warm}", flush=True)
    figures = [
        Comparison("from a bare node to the end of an answer", round(cold["total_s"], 2), COLD_S, "s"),
        Comparison("the same again", round(warm["total_s"], 2), WARM_S, "s"),
    ]
    _report(work, "gpu_node", figures)
    return 0 if info["backend"] == work.backend else 1


def _tests(_: Work, __: argparse.Namespace) -> int:
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", "tests/e2e/test_gpu.py"]
    return subprocess.run(words, check=False).returncode


def _speed(work: Work, _: argparse.Namespace) -> int:
    os.environ["RBEE_TEST_MODEL"] = str(work.large)
    status = measure_all(speed.parts(work), report := Report("gpu_speed", [], machine() | _graphics(work)), work.out)
    print(report.table(), flush=True)
    return status


def measure_all(parts: Iterable[Iterator[Comparison]], report: Report, folder: Path) -> int:
    """All figures, each written to `folder` when it is there: the machine may be taken back at any time, and what ends
    one part is told and leaves the others. The exit status."""
    status = 0
    for part in parts:
        try:
            for figure in part:
                report.figures.append(figure)
                print(f"{figure.name}: {figure.value:g} {figure.unit}; in {report.write(folder)}", flush=True)
        except Exception:
            traceback.print_exc()
            status = 1
    return status


def _report(work: Work, name: str, figures: list[Comparison]) -> None:
    """Print the figures, and leave them in the form of benchmarks/results."""
    report = Report(name, figures, machine() | _graphics(work))
    print(report.table(), flush=True)
    print(f"written to {report.write(work.out)}", flush=True)


def _graphics(work: Work) -> dict[str, Any]:
    """What has to be known of the GPUs, and which model it was."""
    found: dict[str, Any] = {"backend": work.backend, "model": work.large.stem}
    if work.backend != "cuda":
        return found
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(words, capture_output=True, text=True, check=False) if shutil.which(words[0]) else None
    found["gpus"] = [f"{gpu.name}, {gpu.total_mb} MB" for gpu in gpus()]
    return found | {"driver": driver.stdout.split("\n")[0] if driver else ""}


if __name__ == "__main__":
    main()
