"""`rbee bench` at the keeper: figures as llama-bench has them, rows, and a worker that measures itself or cannot."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from rbee.base.errors import ConnectError, NodeError, UsageError
from rbee.base.events import Event, Progress
from rbee.base.settings import Settings
from rbee.cli import main as cli
from rbee.cli.bench import bench_table
from rbee.context import Context
from rbee.fleet.bench import Bench, Speed, bench, context_size, measure, speed
from rbee.infer.request import InferRequest
from rbee.inventory import Inventory, Node
from rbee.node.hive_client import WorkerClient
from rbee.node.session import PerNode
from rbee.registry import Registry
from rbee.transport.connection import Stream
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import (
    BenchRequest,
    BenchResult,
    BenchTest,
    ErrorCode,
    LoadOptions,
    ModelInfo,
    ModelMeta,
    WorkerInfo,
    WorkerOptions,
    WorkerState,
)
from rbee_remote.protocol.load_options import AUTO_CTX
from tests.doubles.connection import FakeConnection
from tests.doubles.engine import ScriptedEngine, loads
from tests.unit.remote.worker.http.test_app import echo, running

SOCKET = "/run/w.sock"
META = ModelMeta("llama", 30, 8192, 576, 49152, 3, 64, 64, quantization="Q4_1", parameters=134_515_008)
MODEL = ModelInfo("m", "/m.gguf", 98_362_432, "", True, "", 0.0, META)
WORKER = WorkerInfo("a" * 16, "m", WorkerState.IDLE, "cuda", "Big GPU", SOCKET, 1, 2, "b", 4096, 4, 4, 300.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((2.0,), Speed(50.0, 0.0)),
        ((1.0, 2.0), Speed(75.0, 35.35533905932738)),  # of the rates, not of the seconds
    ],
)
def test_speed_is_mean_and_sample_deviation_of_the_rates(seconds: tuple[float, ...], expected: Speed) -> None:
    assert speed(BenchTest("tg100", 100, seconds)) == expected


def test_the_table_has_a_row_for_each_test_and_for_each_failure() -> None:
    result = BenchResult((BenchTest("pp512", 512, (1.0, 1.0)), BenchTest("tg128", 128, (2.0, 1.0))), threads=8)
    lost = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "gpu2 cannot be reached")
    table = bench_table([PerNode(Node("gpu1"), Bench(WORKER, MODEL, result)), PerNode(Node("gpu2"), error=lost)])
    common = ("gpu1", "m", "98.4 MB", "134.52 M", "cuda", "Big GPU", "8")
    assert list(table.rows) == [
        (*common, "pp512", "512.00 ± 0.00", ""),
        (*common, "tg128", "96.00 ± 45.25", ""),
        ("gpu2", "-", "-", "-", "-", "-", "-", "FAILED", "-", "gpu2 cannot be reached"),
    ]
    assert [row.get("tokens_per_s") for row in table.data] == [512.0, 96.0, None]
    assert table.data[1]["seconds"] == (2.0, 1.0)
    assert table.data[2]["error"]["code"] == "CONNECTION_TIMEOUT"
    json.dumps(table.data)


async def test_a_worker_measures_itself_and_says_how_far_it_is() -> None:
    events: list[Event] = []
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as folder:
        async with (
            running(Path(folder), loads(ScriptedEngine(echo)), options=WorkerOptions(threads=3)) as worker,
            LocalConnection(keeper_id="keeper") as connection,
        ):
            client = WorkerClient(connection, str(worker.socket), worker_id="a" * 16, keeper_id="keeper")
            result = await measure(client, BenchRequest(0, 8, repetitions=2), events.append)
            with pytest.raises(NodeError) as caught:
                await measure(client, BenchRequest(512, 8), events.append)
    assert result == BenchResult((BenchTest("tg8", 8, (0.008, 0.008)),), threads=3)
    assert events == [Progress("bench", "measuring tg8", done, 3, "steps") for done in range(3)]
    assert caught.value.code is ErrorCode.USAGE


async def test_a_worker_that_dies_is_told_as_such() -> None:
    async def serve(stream: Stream) -> None:
        await stream.read(65536)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        event = b'event: progress\ndata: {"test": "pp8", "done": 0, "total": 2}\n\n'
        await stream.write(head + b"%x\r\n%s\r\n" % (len(event), event))

    async with FakeConnection() as connection:
        connection.listen(SOCKET, serve)
        client = WorkerClient(connection, SOCKET, worker_id="a" * 16, keeper_id="keeper")
        with pytest.raises(NodeError) as caught:
            await measure(client, BenchRequest(8, 0), lambda _: None)
    assert caught.value.code is ErrorCode.WORKER_CRASHED


@pytest.mark.parametrize(
    ("asked", "needed", "loaded"),
    [
        (None, 512, None),  # what a worker has without a word
        (None, 9000, 9000),
        (8192, 512, 8192),
        (256, 512, 512),  # the node's own; --ctx would be refused
        (AUTO_CTX, 9000, AUTO_CTX),
    ],
)
def test_the_context_is_what_the_node_has_unless_the_tests_need_more(
    asked: int | None, needed: int, loaded: int | None
) -> None:
    assert context_size(asked, needed) == loaded


async def test_a_context_that_does_not_hold_the_tests_is_refused_before_any_node_is_asked(tmp_path: Path) -> None:
    def no_registry() -> Registry:
        raise AssertionError("nothing is to be opened")

    settings = Settings(home=tmp_path)
    context = Context(settings, Inventory({}), no_registry, "keeper")
    asked = InferRequest(load=LoadOptions(ctx=256))
    with pytest.raises(UsageError, match="256"):
        await bench([Node("gpu1")], BenchRequest(512, 128), asked, context)


@pytest.mark.parametrize("words", [("--prompt", "0", "--gen", "0"), ("--repetitions", "0"), ("--prompt", "-1")])
def test_what_cannot_be_measured_is_a_usage_error(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "local", *words]) == 2
    assert capsys.readouterr().out == ""


def test_reasons_have_a_column_only_where_something_failed() -> None:
    result = BenchResult((BenchTest("pp512", 512, (1.0,)),), threads=2)
    table = bench_table([PerNode(Node("gpu1"), Bench(WORKER, MODEL, result))])
    assert table.columns[-1] == "TOKENS/S"
    assert table.rows[0][-1] == "512.00 ± 0.00"
