"""A run that is killed (SIGKILL) again and again, at moments of chance, and goes on: nothing is lost, nothing twice.

RBEE_BATCH_KILLS: how many times; a hundred take a minute.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.unit.batch import scripted

KILLS = int(os.environ.get("RBEE_BATCH_KILLS", "16"))
LINES_A_RUN = 60


class Runs:
    """One after the other, each a process of its own."""

    def __init__(self, *words: str) -> None:
        self._words = " ".join(words)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipe = subprocess.PIPE
        self._maker = subprocess.Popen([sys.executable, scripted.__file__], env=env, stdin=pipe, stdout=pipe, text=True)

    def start(self) -> int:
        """Its process."""
        assert self._maker.stdin
        self._maker.stdin.write(f"{self._words}\n")
        self._maker.stdin.flush()
        return self._said()

    def status(self) -> int:
        """Of the one that was started last, once it is over; negative for a signal."""
        return self._said()

    def _said(self) -> int:
        assert self._maker.stdout
        return int(self._maker.stdout.readline())

    def close(self) -> None:
        self._maker.communicate()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def size(out: Path) -> int:
    files = (out, out.with_name(out.name + ".ahead"))
    return sum(path.stat().st_size for path in files if path.exists())


@pytest.mark.parametrize("order", ["input", "finished"])
def test_nothing_is_lost_and_nothing_twice(files: tuple[Path, Path], order: str) -> None:
    source, out = files
    kills = max(1, KILLS // 2)
    count = LINES_A_RUN * (kills + 1)
    source.write_text("".join(json.dumps({"prompt": f"p{number}"}) + "\n" for number in range(1, count + 1)))
    runs = Runs(str(source), str(out), order)
    try:
        status, killed = -signal.SIGKILL, 0
        while status and killed < kills:
            before, process = size(out), runs.start()
            limit = time.monotonic() + PATIENCE_S
            while size(out) == before and time.monotonic() < limit:
                time.sleep(0.001)
            time.sleep(random.random() * 0.02)  # the moment of chance: the run is at work
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            status = runs.status()
            assert status in (0, -signal.SIGKILL)
            killed += 1
        if status:
            runs.start()
            assert runs.status() == 0
    finally:
        runs.close()
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    found = [int(line["custom_id"]) for line in lines]
    assert sorted(found) == list(range(1, count + 1))
    if order == "input":
        assert found == sorted(found)
    for line in lines:
        assert line["response"]["body"]["choices"][0]["message"]["content"] == f"re: p{line['custom_id']}"
    assert not out.with_name(out.name + ".ahead").exists()
