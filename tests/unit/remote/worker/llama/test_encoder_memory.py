"""What encoders take of memory: the formula, what llama.cpp measures, and what a process has."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from rbee_remote.gguf.metadata import read_meta
from rbee_remote.hive.fit.needs import Estimate
from rbee_remote.protocol import WorkerOptions
from rbee_remote.protocol.measuring import MeasureRequest, Point
from tests import tiny_encoders as tiny
from tests.patience import PATIENCE_S
from tests.testbed import minilm

pytestmark = pytest.mark.model

REMOTE = Path(__file__).parents[5] / "remote"

_FULL_STEP = """
import sys, psutil
from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import BatchToken
from rbee_remote.worker.llama.engine import load_engine
config = WorkerConfig("0" * 16, "m", sys.argv[1], "", WorkerOptions(threads=1), 512, 1.0, slots=4)
engine = load_engine(config, lambda _: True)
engine.decode([BatchToken(1000 + at, at % 32, at // 32, True) for at in range(512)], embeddings=True)
print(psutil.Process().memory_info().rss)
"""


@pytest.mark.parametrize("flash", ["auto", "off"])
def test_the_formula_is_an_upper_bound_of_what_llama_cpp_would_take(tmp_path: Path, flash: str) -> None:
    from rbee_remote.worker.llama.memory import measure

    path = tmp_path / "m.gguf"
    tiny.write_bert(path, gguf.PoolingType.MEAN, trained=8192)
    options = WorkerOptions(backend="cpu", flash_attention=flash)
    points = tuple(Point(ctx, 4) for ctx in (512, 2048, 8192))
    answer = measure(MeasureRequest(str(path), options, points))
    estimate = Estimate(read_meta(path), path.stat().st_size, options=options)
    told = replace(estimate, answer=answer)
    for point in answer.points:
        assert point.kv == 0
        graph = estimate.formula(point.at.ctx, 4).compute - estimate.formula(1, 4).compute
        assert graph >= point.host_compute - answer.points[0].host_compute
        assert told.need(point.at.ctx, 4).compute > estimate.outputs(point.at.ctx)


def test_a_worker_of_a_real_encoder_stays_below_what_was_said() -> None:
    from rbee_remote.worker.llama.memory import measure

    path = minilm.model()
    options = WorkerOptions(backend="cpu")
    env = dict(os.environ) | {"PYTHONPATH": str(REMOTE)}
    command = [sys.executable, "-c", _FULL_STEP, str(path)]
    has = int(subprocess.run(command, env=env, capture_output=True, check=True, timeout=PATIENCE_S).stdout)
    estimate = Estimate(read_meta(path), path.stat().st_size, options=options)
    assert estimate.formula(512, 4).total_mb > has / 1e6
    answer = measure(MeasureRequest(str(path), options, (Point(512, 4),)))
    assert replace(estimate, answer=answer).need(512, 4).total_mb > has / 1e6
