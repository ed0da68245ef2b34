"""Logs that this machine keeps of what others say are safe to look at: a terminal that shows them obeys nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rbee.base.events import Event, Progress
from rbee.setup.base import child
from rbee.setup.wheels.building import BuildLog, forecast

HOSTILE = "\x1b]0;mine\x07 error: \u202etxt.exe \x9b31m\rok"
SHOWN = r"\x1b]0;mine\x07 error: \u202etxt.exe \x9b31m\x0dok"


def test_what_a_node_says_while_it_builds(tmp_path: Path) -> None:
    path = tmp_path / "log/build.log"
    with BuildLog(path, lambda _: None) as log:
        log.hear(HOSTILE)
        log.hear("plain\ttext, ünïcode")
        failure = log.failure("on gpu1")
    assert path.read_text() == f"{SHOWN}\nplain\ttext, ünïcode\n"
    assert SHOWN in failure.message
    assert failure.details["last_lines"] == [SHOWN, "plain\ttext, ünïcode"]


async def test_what_a_download_says_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "log/download.log"
    program = (
        "import sys, time\n"
        f"sys.stderr.buffer.write({HOSTILE!r}.encode() + b'\\n\\xff\\xc3'); sys.stderr.flush(); time.sleep(0.1)\n"
        "sys.stderr.buffer.write(b'\\xbc\\n'); print('out')"
    )
    for _ in range(2):
        heard: list[str] = []
        assert await child.run([sys.executable, "-c", program], heard.append, errors=path) == 0
        assert heard == ["out"]
    assert path.read_text() == f"{SHOWN}\n\\xffü\n" * 2


async def test_much_on_stderr_holds_nobody_up(tmp_path: Path) -> None:
    program = "import sys\nfor _ in range(2000): sys.stderr.write('x' * 1000)\nprint('out')"
    heard: list[str] = []
    assert await child.run([sys.executable, "-c", program], heard.append, errors=tmp_path / "log") == 0
    assert heard == ["out"]
    assert (tmp_path / "log").stat().st_size == 2_000_000


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (9, 5.0, "building llama.cpp (5 s)"),
        (10, 7.0, "building llama.cpp (7 s, about 1 min 03 s left)"),
        (50, 60.0, "building llama.cpp (1 min 00 s, about 1 min 00 s left)"),
        (100, 90.0, "building llama.cpp (1 min 30 s)"),
    ],
)
def test_how_long_a_build_still_takes(tmp_path: Path, done: int, seconds: float, said: str) -> None:
    events: list[Event] = []
    times = iter([0.0, seconds])
    with BuildLog(tmp_path / "log", events.append, lambda: next(times)) as log:
        log.hear(f"[{done}/100] Building CXX object x.o")
    (progress,) = (event for event in events if isinstance(event, Progress) and event.total)
    assert progress.text == said


def test_a_build_says_first_how_long_it_takes_and_how_to_do_without() -> None:
    few, many = forecast("gpu1", 1, "cpu").text, forecast("gpu1", 64, "cpu").text
    assert "compiled once for gpu1: about " in few
    assert "on 1 core," in few
    assert "about 1 min on 64 cores" in many
    assert "wheel_indexes" in many
    assert "because of rocm" in forecast("gpu1", 8, "rocm").text
    assert "about 50 min" in forecast("gpu1", 1, "cuda").text
    begun = forecast("gpu1", 2, "cuda", is_begun=True).text
    assert "from where that was interrupted; the whole build takes" in begun
    assert "wheel_indexes" not in begun
