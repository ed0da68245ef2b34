"""The status pipe, on a real pipe."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Iterator

import pytest

from rbee_remote.protocol import Served, WorkerState, WorkerStatus, decode
from rbee_remote.worker.service.hive_pipe import StatusPipe
from tests.patience import PATIENCE_S

STATUS = WorkerStatus("a" * 16, "m", WorkerState.LOADING, 0.5, 2048, 1, 1, 0, None)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """Read and write end; the write end is closed by the pipe under test."""
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)


async def test_each_status_is_a_line(ends: tuple[int, int]) -> None:
    pipe = StatusPipe(ends[1], on_gone=lambda: pytest.fail("the reader is there"))
    pipe.write(STATUS)
    ready = dataclasses.replace(STATUS, state=WorkerState.IDLE, idle_s=0.0)
    pipe.write(ready)
    pipe.close()
    lines = os.read(ends[0], 65536).splitlines()
    assert [decode(WorkerStatus, json.loads(line)) for line in lines] == [STATUS, ready]


async def test_a_slow_reader_misses_old_lines_but_never_the_last(ends: tuple[int, int]) -> None:
    pipe = StatusPipe(ends[1], on_gone=lambda: pytest.fail("the reader is there"))
    for number in range(2000):
        pipe.write(dataclasses.replace(STATUS, queued=number))
    data = b""
    while b'"queued": 1999' not in data:
        data += await asyncio.to_thread(os.read, ends[0], 65536)
    pipe.close()
    numbers = [json.loads(line)["queued"] for line in data.splitlines()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 2000


def served(number: int) -> Served:
    return Served(f"{number:032x}", "keeper", "me@here", number, 1, "stop")


async def test_a_slow_reader_misses_no_request_that_was_served(ends: tuple[int, int]) -> None:
    pipe = StatusPipe(ends[1], on_gone=lambda: pytest.fail("the reader is there"))
    for number in range(3000):
        pipe.write(dataclasses.replace(STATUS, queued=number, served=(served(number),)))
    flushed = asyncio.create_task(pipe.flushed(30.0))
    data = b""
    while not (flushed.done() and data.endswith(b"\n")):
        data += await asyncio.to_thread(os.read, ends[0], 65536)
    pipe.close()
    statuses = [decode(WorkerStatus, json.loads(line)) for line in data.splitlines()]
    assert [one for status in statuses for one in status.served] == [served(number) for number in range(3000)]
    assert len(statuses) < 3000
    assert max(len(line) for line in data.splitlines()) < 1 << 17
    assert statuses[-1].queued == 2999


async def test_what_waits_for_a_hive_that_never_reads_is_bounded(
    ends: tuple[int, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee_remote.worker.service.hive_pipe.MOST_SERVED", 100)
    pipe = StatusPipe(ends[1], on_gone=lambda: pytest.fail("the reader is there"))
    for number in range(5000):
        pipe.write(dataclasses.replace(STATUS, served=(served(number),)))
    await pipe.flushed(0.05)
    data = b""
    while f"{4999:032x}".encode() not in data or not data.endswith(b"\n"):
        data += await asyncio.to_thread(os.read, ends[0], 65536)
    pipe.close()
    got = [one for line in data.splitlines() for one in decode(WorkerStatus, json.loads(line)).served]
    assert got[-100:] == [served(number) for number in range(4900, 5000)]
    assert "missing in its log" in caplog.text


async def test_a_hive_that_is_gone_is_noticed_without_writing() -> None:
    read_end, write_end = os.pipe()
    gone = asyncio.Event()
    StatusPipe(write_end, gone.set)
    os.close(read_end)
    await asyncio.wait_for(gone.wait(), PATIENCE_S)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write_end)


async def test_writing_to_a_hive_that_is_gone_says_so_once() -> None:
    read_end, write_end = os.pipe()
    told: list[bool] = []
    pipe = StatusPipe(write_end, lambda: told.append(True))
    os.close(read_end)
    pipe.write(STATUS)
    pipe.write(STATUS)
    await asyncio.sleep(0)
    pipe.close()
    assert told == [True]
