"""Which worker a launched program gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rbee.launch.model import slots_there
from rbee_remote.protocol import LoadOptions, WorkerOptions, WorkerState
from tests.doubles.hive import worker_info

MODEL = "smollm2:135m"
HAS = replace(worker_info(), ctx=40960, slots=4, options=WorkerOptions(ctx=40960, slots=4))
ROOMY = LoadOptions(ctx=32768)


@pytest.mark.parametrize(
    ("workers", "load", "slots"),
    [
        ([], ROOMY, 2),
        ([HAS], ROOMY, 4),
        ([replace(HAS, state=WorkerState.LOADING)], ROOMY, 4),
        ([replace(HAS, state=WorkerState.STOPPING)], ROOMY, 2),
        ([replace(HAS, model="another")], ROOMY, 2),
        ([replace(HAS, slots=1)], ROOMY, 2),
        ([HAS, replace(HAS, slots=3), replace(HAS, slots=8)], ROOMY, 3),
        ([HAS, replace(HAS, slots=2)], ROOMY, 2),
        ([HAS], LoadOptions(ctx=65536), 2),
        ([HAS], LoadOptions(ctx=0), 2),
        ([HAS], replace(ROOMY, kv_type="q8_0"), 2),
        ([HAS], replace(ROOMY, lora=("file:/a.gguf:1",)), 2),
    ],
)
def test_the_slots_of_a_worker_that_is_there_are_taken(workers: list[object], load: LoadOptions, slots: int) -> None:
    assert slots_there(workers, MODEL, load, 2) == slots  # type: ignore[arg-type]
