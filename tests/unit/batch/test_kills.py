"""A run that is killed (SIGKILL) again and again, at moments of chance, and goes on: nothing is lost, nothing twice.

RBEE_BATCH_KILLS: how many times; a hundred take two minutes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.unit.batch import scripted

KILLS = int(os.environ.get("RBEE_BATCH_KILLS", "16"))
LINES_A_RUN = 60


def start(source: Path, out: Path, order: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, scripted.__file__, str(source), str(out), order]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


def size(out: Path) -> int:
    files = (out, out.with_name(out.name + ".ahead"))
    return sum(path.stat().st_size for path in files if path.exists())


@pytest.mark.parametrize("order", ["input", "finished"])
def test_nothing_is_lost_and_nothing_twice(tmp_path: Path, order: str) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    kills = max(1, KILLS // 2)
    count = LINES_A_RUN * (kills + 1)
    source.write_text("".join(json.dumps({"prompt": f"p{number}"}) + "\n" for number in range(1, count + 1)))
    killed = 0
    while killed < kills:
        before = size(out)
        process = start(source, out, order)
        limit = time.monotonic() + PATIENCE_S
        while size(out) == before and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.001)
        time.sleep(random.random() * 0.02)  # the moment of chance: the run is at work
        if process.poll() is not None:
            assert process.wait() == 0, process.communicate()[1].decode()
            break
        process.kill()
        process.communicate()
        killed += 1
    done = start(source, out, order)
    _, said = done.communicate(timeout=PATIENCE_S)
    assert done.returncode == 0, said.decode()
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    found = [int(line["custom_id"]) for line in lines]
    assert sorted(found) == list(range(1, count + 1))
    if order == "input":
        assert found == sorted(found)
    for line in lines:
        assert line["response"]["body"]["choices"][0]["message"]["content"] == f"re: p{line['custom_id']}"
    assert not out.with_name(out.name + ".ahead").exists()
