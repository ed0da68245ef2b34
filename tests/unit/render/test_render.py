"""What the user sees: plain lines, JSON, and a terminal, each checked byte by byte where that matters."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rbee.base.errors import ConfigError, RbeeError
from rbee.base.events import Event, Finished, Notice, Phase, PhaseDone, PhaseStarted, Progress, Retry, Timings, Token
from rbee.render import Output, OutputClosed, Table, make_renderer
from rbee.render.plain import PlainRenderer
from rbee.render.text import Meter, amount, clock_time, columns, neutralise, plain_value
from rbee_remote.protocol import ErrorCode, Usage, WorkerState
from tests.patience import PATIENCE_S

TIMINGS = Timings(connect_s=0.12, first_token_s=0.5, tokens_per_s=101.26)
LAST = "\x04"  # what a Terminal writes last, to see that all before it has come
FINISHED = Finished("stop", Usage(5, 2), TIMINGS, "gpu1", "smollm2:135m", "a" * 16)
TRIP: list[Event] = [
    PhaseStarted(Phase.NODE, "connecting to gpu1"),
    Retry("gpu1", 1, 3, "timed out", 0.2),
    Retry("gpu1", 3, 3, "timed out", None),
    PhaseDone(Phase.NODE, "gpu1 is ready", 0.31),
    PhaseStarted(Phase.MODEL, "looking for smollm2:135m"),
    Progress("pull", "downloading smollm2:135m", 0, 98_362_432),
    Progress("pull", "downloading smollm2:135m", 98_362_432, 98_362_432),
    PhaseDone(Phase.MODEL, "smollm2:135m is on gpu1", 0.04),
    Notice("waiting: another rbee prepares gpu1"),
    Token("Hel", 1),
    Token("lo\n", 2),
    PhaseDone(Phase.INFERENCE, "2 tokens", 1.0),
    FINISHED,
]
ERROR = ConfigError("i.toml: bad", hint="did you mean 'port'?", details={"file": "i.toml", "line": 3})


def play(events: list[Event], **options: bool | int) -> tuple[str, str]:
    """stdout and stderr of a renderer that writes into files."""
    out, err = io.StringIO(), io.StringIO()
    with make_renderer(stdout=out, stderr=err, **options) as renderer:  # type: ignore[arg-type]
        for event in events:
            renderer(event)
    return out.getvalue(), err.getvalue()


def test_plain() -> None:
    out, err = play(TRIP)
    assert out == "Hello\n"
    assert err.splitlines() == [
        "gpu1: try 1 of 3 failed: timed out; next in 0.2 s",
        "gpu1: try 3 of 3 failed: timed out",
        "+ 2 node     gpu1 is ready  (0.3 s)",
        "downloading smollm2:135m  0 B of 98.4 MB  0%  0 s",
        "+ 3 model    smollm2:135m is on gpu1  (0.0 s)",
        "waiting: another rbee prepares gpu1",
        "+ 8 inference 2 tokens  (1.0 s)",
    ]


def test_quiet_is_the_answer_alone() -> None:
    assert play(TRIP, quiet=True) == ("Hello\n", "")


def test_verbose_tells_what_begins() -> None:
    assert ". 2 node     connecting to gpu1" in play(TRIP, verbose=1)[1].splitlines()


def test_timing_follows_the_answer() -> None:
    _, err = play([FINISHED], timing=True)
    assert err.splitlines() == ["connect      0.120 s", "first token  0.500 s", "tokens/s     101.3"]


def test_without_streaming_the_answer_comes_whole_and_is_not_lost_in_an_error() -> None:
    out = io.StringIO()
    renderer = make_renderer(stdout=out, stderr=io.StringIO(), stream=False)
    renderer(Token("Hel", 1))
    assert out.getvalue() == ""
    renderer.error(RbeeError(ErrorCode.WORKER_CRASHED, "the worker died"))
    assert out.getvalue() == "Hel"
    assert play(TRIP, stream=False)[0] == "Hello\n"


def test_progress_is_a_line_at_the_beginning_every_few_seconds_and_at_a_late_end() -> None:
    now = [0.0]
    err = io.StringIO()
    renderer = PlainRenderer(Output(io.StringIO()), Output(err), clock=lambda: now[0])
    for key, step_s in (("quick", 0.0005), ("slow", 0.0125)):
        for done in range(1001):
            now[0] += step_s
            renderer(Progress(key, key, done, 1000))
    assert [line.split()[0] for line in err.getvalue().splitlines()] == ["quick", "slow", "slow", "slow", "slow"]
    for _ in range(100):
        now[0] += 1
        renderer(Progress("build", "building", 0, None, "steps"))
    assert err.getvalue().count("building") == 20


def test_json_is_one_object_a_line() -> None:
    out, err = play(TRIP, json=True)
    lines = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert lines[0] == {"event": "phase", "phase": 2, "name": "node", "text": "connecting to gpu1"}
    assert lines[1] == {
        "event": "retry",
        "what": "gpu1",
        "attempt": 1,
        "attempts": 3,
        "reason": "timed out",
        "delay_s": 0.2,
    }
    assert lines[3] == {"event": "phase_done", "phase": 2, "name": "node", "text": "gpu1 is ready", "seconds": 0.31}
    assert lines[5]["event"] == "progress"
    assert lines[8] == {"event": "notice", "text": "waiting: another rbee prepares gpu1"}
    assert lines[9] == {"event": "token", "text": "Hel", "tokens": 1}
    assert lines[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 2}
    assert lines[-1]["timings"]["probe_s"] is None


def test_json_without_streaming_has_the_text_at_the_end() -> None:
    lines = [json.loads(line) for line in play(TRIP, json=True, stream=False)[0].splitlines()]
    assert lines[-1]["text"] == "Hello\n"
    assert all(line["event"] != "token" for line in lines)


def test_json_without_streaming_keeps_the_text_of_an_answer_that_broke_off() -> None:
    out = io.StringIO()
    renderer = make_renderer(stdout=out, stderr=io.StringIO(), json=True, stream=False)
    renderer(Token("The sky", 2))
    renderer(Token(" is", 3))
    renderer.error(ERROR)
    token, error = (json.loads(line) for line in out.getvalue().splitlines())
    assert token == {"event": "token", "text": "The sky is", "tokens": 3}
    assert list(error) == ["error"]


def test_errors_in_text_and_json() -> None:
    err, out = io.StringIO(), io.StringIO()
    make_renderer(stdout=io.StringIO(), stderr=err).error(ERROR)
    make_renderer(stdout=out, stderr=io.StringIO(), json=True).error(ERROR)
    assert err.getvalue() == "error: i.toml: bad\n  file: i.toml\n  line: 3\nhint: did you mean 'port'?\n"
    assert json.loads(out.getvalue()) == {
        "error": {
            "code": "CONFIG_INVALID",
            "message": "i.toml: bad",
            "details": {"file": "i.toml", "line": 3},
            "hint": "did you mean 'port'?",
        }
    }


TABLE = Table(("NODE", "STATE"), [("gpu1", "idle"), ("local", "busy")], [{"node": "gpu1"}, {"node": "local"}])


def test_tables() -> None:
    out, data = io.StringIO(), io.StringIO()
    make_renderer(stdout=out, stderr=io.StringIO()).table(TABLE)
    make_renderer(stdout=data, stderr=io.StringIO(), json=True).table(TABLE)
    assert out.getvalue() == "NODE   STATE\ngpu1   idle\nlocal  busy\n"
    assert json.loads(data.getvalue()) == [{"node": "gpu1"}, {"node": "local"}]


def test_a_record() -> None:
    out = io.StringIO()
    make_renderer(stdout=out, stderr=io.StringIO()).record(
        {"host_key": None, "tags": ["a", "b"], "slots": 2, "state": WorkerState.IDLE, "env": {"A": "1", "B": ""}}
    )
    assert out.getvalue() == "host key  -\ntags      a, b\nslots     2\nstate     idle\nenv       A=1 B=\n"


@pytest.mark.parametrize(
    ("value", "text"), [({}, "-"), ({"ctx": 512, "devices": [], "error": None}, "ctx=512"), ([], "-"), ("", "-")]
)
def test_what_is_empty_is_a_dash(value: object, text: str) -> None:
    assert plain_value(value) == text


def test_a_reader_that_hangs_up_is_no_connection_error() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    with pytest.raises(OutputClosed):
        make_renderer(stdout=stream, stderr=io.StringIO())(Token("x", 1))
    assert not issubclass(OutputClosed, OSError)
    stream.close()  # what it still held makes no trouble


def test_a_pipe_gets_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    path = tmp_path / "answer.txt"
    with path.open("w", encoding="ascii") as stream:
        make_renderer(stdout=stream, stderr=io.StringIO())(Token("blå 🐝 \ud83d", 1))
    assert path.read_bytes() == "blå 🐝 ?".encode()


# --- a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal whose other side is read all the time, as a terminal emulator would."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # Linux's way to say that the other side was closed
                return
            if not piece:
                return
            self._seen += piece

    def so_far(self) -> str:
        return self._seen.decode().replace("\r\n", "\n")

    def close(self) -> str:
        """All that was written, with the line discipline's carriage returns taken out again.

        A side that closes can take with it what the other has not read yet, so a last mark is waited for first.
        """
        self.stream.write(LAST)
        self.stream.flush()
        until(lambda: self._seen.endswith(LAST.encode()))
        del self._seen[-len(LAST.encode()) :]
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return self.so_far()


@contextmanager
def terminals(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[list[Terminal]]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    opened = [Terminal() for _ in range(count)]
    try:
        yield opened
    finally:
        for terminal in opened:
            if not terminal.stream.closed:
                terminal.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_stdout_holds_exactly_the_answer_while_stderr_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminals(monkeypatch, 2) as (out, err), make_renderer(stdout=out.stream, stderr=err.stream) as renderer:
        renderer(PhaseStarted(Phase.MODEL, "looking for smollm2:135m"))
        renderer(Progress("pull", "downloading", 40_000_000, 98_362_432))
        until(lambda: "40.0 MB of 98.4 MB" in err.so_far())
        for event in TRIP:
            renderer(event)
        renderer.close()
        assert out.close() == "Hello\n"
        shown = err.close()
    assert "✓" in shown
    assert "2 node     gpu1 is ready  (0.3 s)" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_on_one_terminal_nothing_moves_once_tokens_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminals(monkeypatch, 1) as (both,), make_renderer(stdout=both.stream, stderr=both.stream) as renderer:
        renderer(PhaseStarted(Phase.INFERENCE, "smollm2:135m"))
        until(lambda: "8 inference" in both.so_far())
        renderer(Token("First", 1))
        until(lambda: "First" in both.so_far())
        time.sleep(0.3)  # longer than the display's delay and its refresh
        renderer(Token(" and last", 2))
        renderer(PhaseDone(Phase.INFERENCE, "2 tokens", 1.0))
        renderer(FINISHED)
        renderer.close()
        shown = both.close()
    assert "First and last\n" in shown
    assert re.search(r"First and last\n.*✓.*8 inference 2 tokens", shown)


def test_on_one_terminal_a_notice_in_mid_answer_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminals(monkeypatch, 1) as (both,), make_renderer(stdout=both.stream, stderr=both.stream) as renderer:
        for event in (Token("Once upon a t", 1), Notice("lost the connection to gpu1"), Token("ime", 2), FINISHED):
            renderer(event)
        renderer.close()
        assert both.close() == "Once upon a t\nlost the connection to gpu1\nime\n"


def test_a_notice_does_not_break_an_answer_that_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    with terminals(monkeypatch, 1) as (out,), make_renderer(stdout=out.stream, stderr=err) as renderer:
        for event in (Token("Once upon a t", 1), Notice("lost the connection to gpu1"), Token("ime", 2), FINISHED):
            renderer(event)
        renderer.close()
        assert out.close() == "Once upon a time\n"
    assert err.getvalue() == "lost the connection to gpu1\n"


def test_a_terminal_is_not_driven_by_what_a_model_or_node_says(monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = "a\x1b]0;title\x07b\x9b31mc\r\td\n"
    with terminals(monkeypatch, 2) as (out, err), make_renderer(stdout=out.stream, stderr=err.stream) as renderer:
        renderer(Token(nasty, 1))
        renderer(Notice("n\x1b[2Jote"))
        renderer.error(RbeeError(ErrorCode.INTERNAL, "e\x1b[2J", hint="h\x1b[2J", details={"k\x1b[2J": "v\x1b[2J"}))
        renderer.close()
        assert out.close() == "a\\x1b]0;title\\x07b\\x9b31mc\\x0d\td\n"
        assert "\x1b[2J" not in err.close()


def test_a_pipe_gets_what_the_model_said() -> None:
    nasty = "a\x1b[31mb\x07"
    assert play([Token(nasty, 1)])[0] == nasty


@pytest.mark.parametrize("way", ["option", "environment"])
def test_no_color(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with terminals(monkeypatch, 1) as (err,):
        if way == "environment":
            monkeypatch.setenv("NO_COLOR", "1")
        with make_renderer(stdout=io.StringIO(), stderr=err.stream, color=way != "option") as renderer:
            renderer(PhaseDone(Phase.NODE, "ready", 0.1))
            renderer.error(ERROR)
        shown = err.close()
    assert "\x1b" not in shown
    assert "error: i.toml: bad\n" in shown


def test_a_terminal_that_cannot_move_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminals(monkeypatch, 1) as (err,):
        monkeypatch.setenv("TERM", "dumb")
        with make_renderer(stdout=io.StringIO(), stderr=err.stream) as renderer:
            renderer(PhaseDone(Phase.NODE, "ready", 0.1))
        assert err.close() == "✓ 2 node     ready  (0.1 s)\n"


def test_an_answer_without_a_newline_leaves_the_prompt_on_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminals(monkeypatch, 1) as (out,):
        with make_renderer(stdout=out.stream, stderr=io.StringIO()) as renderer:
            renderer(Token("42", 1))
        assert out.close() == "42\n"
    assert play([Token("42", 1)])[0] == "42"


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminals(monkeypatch, 2) as (out, err):
        with make_renderer(stdout=out.stream, stderr=err.stream) as renderer:
            renderer.table(TABLE)
        shown = out.close()
    assert "gpu1" in shown
    assert "STATE" in shown


# --- pure parts ---------------------------------------------------------------------------------------------------


@given(st.text())
@example("\r\n \r")
def test_neutralised_text_holds_no_control_characters(text: str) -> None:
    left = set(neutralise(text).replace("\r\n", "\n")) - {"\n", "\t"}
    assert not [char for char in left if ord(char) < 32 or 127 <= ord(char) < 160]


def test_the_meter_knows_rate_and_time_left() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter.add(Progress("k", "t", 0, 100e6))
    now[0] = 5.0
    event = Progress("k", "t", 50e6, 100e6)
    meter.add(event)
    assert meter.figures(event) == "50.0 MB of 100.0 MB  50%  10.0 MB/s  5 s left"
    restart = Progress("k", "t", 10e6, 100e6)
    meter.add(restart)
    assert meter.figures(restart) == "10.0 MB of 100.0 MB  10%"


def test_of_steps_the_meter_foretells_nothing() -> None:
    """A build says itself how long it will take: by all that it has done."""
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter.add(Progress("build", "t", 10, 300, "steps"))
    now[0] = 5.0
    meter.add(event := Progress("build", "t", 30, 300, "steps"))
    assert meter.figures(event) == "30/300  10%"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Progress("k", "t", 12, 240, "steps"), "12/240  5%"),
        (Progress("k", "t", 12, None, "steps"), "12"),
        (Progress("k", "t", 45, 100, "percent"), "45%"),
        (Progress("k", "t", 1500, None), "1.5 kB"),
    ],
)
def test_figures_of_every_unit(event: Progress, text: str) -> None:
    assert Meter(lambda: 0.0).figures(event) == text


def test_amounts_and_times() -> None:
    assert [amount(n) for n in (0, 999, 98_362_432, 5e12)] == ["0 B", "999 B", "98.4 MB", "5.0 TB"]
    assert [clock_time(s) for s in (0.9, 185, 7800)] == ["0 s", "3:05 min", "2:10 h"]


def test_columns_of_nothing() -> None:
    assert columns((), []) == []
    assert columns(("A",), []) == ["A"]
