"""The output's file: whatever ends a run, nothing in it is lost or twice, and it is the beginning of the whole."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.base.errors import RbeeError, UsageError
from rbee.batch.journal import AHEAD, Journal, ahead_of
from rbee.batch.results import Outcome, Run, line_of
from rbee_remote.protocol import ErrorCode

RUN = Run("a" * 12, "b" * 12)


def line(number: int, *, failed: bool = False, run: Run = RUN) -> bytes:
    error = ("WORKER_GONE", "gone") if failed else None
    return line_of(run, number, str(number), Outcome(200, "r", {"n": number}, error, "gpu1", 1, 0.1, 3))


def numbers(path: Path) -> list[int]:
    return [int(json.loads(each)["custom_id"]) for each in path.read_bytes().splitlines()]


def test_lines_are_written_in_the_inputs_order(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, RUN, in_order=True) as journal:
        journal.read()
        for number in (1, 2, 4, 5):  # the third has nothing in it
            journal.begin(number)
        journal.add(2, line(2))
        journal.add(5, line(5))
        assert (numbers(out), journal.ahead) == ([], 2)
        journal.add(1, line(1))
        assert (numbers(out), journal.ahead) == ([1, 2], 1)
        journal.add(4, line(4))
        assert (journal.done.count, journal.tokens) == (4, 12)
    assert numbers(out) == [1, 2, 4, 5]
    assert not out.with_name(out.name + AHEAD).exists()


def test_lines_are_written_as_they_are_finished(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, RUN, in_order=False) as journal:
        journal.read()
        for number in (3, 1, 2):
            journal.begin(number)
            journal.add(number, line(number))
            journal.add(number, line(number))
    assert numbers(out) == [3, 1, 2]


@settings(max_examples=60)
@given(
    count=st.integers(1, 30),
    modes=st.lists(st.booleans(), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_whatever_a_power_cut_leaves_a_run_goes_on(
    tmp_path_factory: pytest.TempPathFactory, count: int, modes: list[bool], seed: int
) -> None:
    """Each run ends somewhere; then the files lose some of their last bytes."""
    chance = random.Random(seed)
    out = tmp_path_factory.mktemp("out") / "out.jsonl"
    ahead = out.with_name(out.name + AHEAD)
    for in_order in [*modes, modes[-1]]:
        with Journal(out, RUN, in_order=in_order) as journal:
            journal.read()
            kept = set(numbers(out))
            assert len(kept) == len(numbers(out))
            running: list[int] = []
            for number in range(1, count + 1):
                journal.begin(number)
                if number not in journal.done:
                    running.append(number)
                while len(running) >= 5:
                    done = running.pop(chance.randrange(len(running)))
                    journal.add(done, line(done))
            assert kept <= set(numbers(out))
        size = out.stat().st_size
        os.truncate(out, max(0, size - chance.choice([0, 0, 1, 5, 300])))
        if ahead.exists():
            os.truncate(ahead, max(0, ahead.stat().st_size - chance.choice([0, 1, 50])))
    with Journal(out, RUN, in_order=modes[-1]) as journal:
        journal.read()
        for number in range(1, count + 1):
            journal.begin(number)
            if number not in journal.done:
                journal.add(number, line(number))
    assert sorted(numbers(out)) == list(range(1, count + 1))
    if all(modes):
        assert numbers(out) == list(range(1, count + 1))


def test_a_torn_last_line_is_cut_off_and_zeros_behind_it(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for rest in (b'{"id":"batch_re', line(2)[:-1], line(2)[:-5], bytes(100)):
        out.write_bytes(line(1) + rest)
        with Journal(out, RUN, in_order=False) as journal:
            journal.read()
            assert journal.done.count == 1
        assert out.read_bytes() == line(1)


def test_zeros_are_all_that_a_power_cut_has_left(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(bytes(4096))
    with Journal(out, RUN, in_order=False) as journal:
        journal.read()
    assert out.read_bytes() == b""


FOREIGN = [
    b"my own notes\n",
    b"my own notes",
    line(1) + b"mine\n" + line(2),
    line(1) + b"mine",
    line(1)[:-1] + b" \n" + line(2),
    line(1)[:-1] + b"\r\n",
    b"\0\0\0\x18ftypmp42 a film",
    b"\0\0\1\0\n an icon",
    bytes(2**20 + 1),
    b'{"id":"batch_req_6800aa","custom_id":"a"}\n',
    b'{"id":"batch_req_6800aa","custom_id":"a"}',
    b"{}",
]


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out.jsonl"
    ahead = ahead_of(out)
    for path in (out, ahead):
        path.write_bytes(content)
        with Journal(out, RUN, in_order=False) as journal, pytest.raises(UsageError, match="did not write"):
            journal.read()
        if not content.startswith(b'{"id":"batch_req_a'):
            with Journal(out, RUN, in_order=False) as journal, pytest.raises(UsageError, match="did not write"):
                journal.begin_anew()
        assert path.read_bytes() == content
        path.write_bytes(line(1))


def test_what_is_ahead_outlives_a_run_that_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, RUN, in_order=True) as journal:
        journal.read()
        for number in (1, 2, 3):
            journal.begin(number)
        journal.add(1, line(1))
        journal.add(3, line(3))
    for run in (Run("a" * 12, "c" * 12), Run("c" * 12, "b" * 12)):
        with Journal(out, run, in_order=True) as journal, pytest.raises(UsageError):
            journal.read()
    assert (numbers(out), numbers(ahead_of(out))) == ([1], [3])


def test_to_begin_anew_throws_away_what_any_run_has_written(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(line(1, run=Run("c" * 12, "d" * 12)) + b'{"id":"ba')
    ahead_of(out).write_bytes(line(2)[:-5])
    with Journal(out, RUN, in_order=True) as journal:
        journal.begin_anew()
        journal.read()
        assert journal.done.count == 0
    assert (out.read_bytes(), ahead_of(out).exists()) == (b"", False)


@pytest.mark.parametrize(
    ("run", "why"), [(Run("c" * 12, "b" * 12), "another input"), (Run("a" * 12, "c" * 12), "other options")]
)
def test_answers_to_something_else_are_refused(tmp_path: Path, run: Run, why: str) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(line(1))
    with Journal(out, run, in_order=True) as journal:
        with pytest.raises(UsageError, match=why) as caught:
            journal.read()
        assert "--restart" in caught.value.hint
        journal.begin_anew()
        journal.read()
        assert journal.done.count == 0


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, RUN, in_order=True), pytest.raises(RbeeError, match="another `rbee batch`") as caught:
        Journal(out, RUN, in_order=True).__enter__()
    assert caught.value.code is ErrorCode.IN_USE
    with Journal(out, RUN, in_order=True):
        pass


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError):
            Journal(path, RUN, in_order=True).__enter__()


@pytest.mark.parametrize("in_order", [True, False])
def test_lines_that_failed_are_asked_again(tmp_path: Path, in_order: bool) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(line(1) + line(2, failed=True) + line(3))
    out.with_name(out.name + AHEAD).write_bytes(line(5) + line(6, failed=True))
    with Journal(out, RUN, in_order=in_order) as journal:
        assert journal.take_back_failed() == 2
        journal.read()
        assert [number for number in range(1, 7) if number in journal.done] == [1, 3, 5]
        for number in range(1, 7):
            journal.begin(number)
            journal.add(number, line(number))
        assert journal.failed == 0
    assert sorted(numbers(out)) == [1, 2, 3, 4, 5, 6]
    if in_order:
        assert numbers(out) == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_takes_no_half_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    real, room = os.write, len(line(1)) + 10

    def write(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real(file, data[:room])
        room -= count
        return count

    with Journal(out, RUN, in_order=False) as journal:
        journal.read()
        monkeypatch.setattr(os, "write", write)
        journal.add(1, line(1))
        with pytest.raises(RbeeError, match="No space left") as caught:
            journal.add(2, line(2))
        monkeypatch.undo()
        assert caught.value.code is ErrorCode.DISK_FULL
        assert 2 not in journal.done
    assert out.read_bytes() == line(1)
