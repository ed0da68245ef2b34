"""The wheel that travels to any node, against one that was compiled for this very processor: seconds for 256 tokens."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Comparison, compare, in_turn
from rbee.base.settings import Settings
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels.cache import WheelCache
from tests.testbed import assets

TOKENS = 256
#: Generate greedily with the worker's own engine, and print how long it took. argv: model, tokens.
_GENERATE = """
import sys, time
from rbee_remote.protocol import Sampling, WorkerConfig, WorkerOptions
from rbee_remote.worker.llama.engine import load_engine
from rbee_remote.worker.engine.interface import BatchToken
path, count = sys.argv[1], int(sys.argv[2])
engine = load_engine(WorkerConfig("0" * 16, "m", path, "", WorkerOptions(), 1024, 1.0), lambda share: True)
prompt = engine.tokenize("Why is the sky blue?", add_special=True, parse_special=True)
engine.start(0, Sampling(temperature=0.0), 1, prompt)
engine.decode([BatchToken(token, pos, 0, pos == len(prompt) - 1) for pos, token in enumerate(prompt)])
token, pos = engine.sample(0, len(prompt) - 1).token, len(prompt)
began = time.perf_counter()
for _ in range(count):
    engine.decode([BatchToken(token, pos, 0, True)])
    token, pos = engine.sample(0, 0).token, pos + 1
print(time.perf_counter() - began)
"""


def measure() -> list[Comparison]:
    with tempfile.TemporaryDirectory(prefix="rbee-bench-wheels-") as folder:
        portable, native = Path(folder, "portable"), Path(folder, "native")
        found = asyncio.run(
            WheelCache(assets.wheel_cache(), Settings.from_environment().log).llama_wheel(Target.here(), "cpu", _quiet)
        )
        for wheel, site in ((found.path, portable), (_native_wheel(), native)):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        samples = in_turn({"portable": _generate(portable), "native": _generate(native)})
    return [compare(f"{TOKENS} tokens with the portable wheel", samples, "portable", "native", goal=round(1 / 0.97, 3))]


def _quiet(_: object) -> None:
    """The cache was filled by `make dev`."""


def _native_wheel() -> Path:
    """llama-cpp-python as pip builds it without any flags; built once into the cache, which takes minutes."""
    folder = assets.cache_folder() / "native"
    if not list(folder.glob("*.whl")):
        words = ["wheel", "--quiet", "--no-deps", "--no-cache-dir", "--no-binary", ":all:", "--wheel-dir", str(folder)]
        wanted = requirements.llama()
        subprocess.run([sys.executable, "-m", "pip", *words, f"{wanted.name}=={wanted.version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _generate(site: Path) -> Callable[[], float]:
    path = os.pathsep.join([str(site), str(Path(__file__).parent.parent / "remote")])

    def run() -> float:
        words = [sys.executable, "-c", _GENERATE, str(assets.model()), str(TOKENS)]
        env = dict(os.environ) | {"PYTHONPATH": path}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        return float(done.stdout)

    return run
