"""Commands of the payload on a node: from its disk or from memory, with whatever Python is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.cleanup import payload_commands
from rbee.cleanup.payload_commands import gpus, run_payload, survey, tidy
from rbee.node.probe import Probe, Python
from rbee.setup.base.payload import build_payload
from rbee.transport.connection import Completed
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import ErrorCode, FileSeen, GpuReport, Survey, TidyRequest, encode
from rbee_remote.protocol.gpus import GpuSilent
from tests.doubles import nvml
from tests.doubles.connection import FakeConnection

SYSTEM = Python(sys.executable, sys.version_info[:3], has_ensurepip=False)


@pytest.fixture
def connection() -> LocalConnection:
    return LocalConnection(keeper_id="0" * 16)


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Probe]:
    """A node without anything of rbee; nothing may be written there by looking."""
    home = tmp_path / "ho me'\u00e4"
    yield Probe(system="Linux", home=str(home), run_dir=str(tmp_path / "run"), pythons=(SYSTEM,))
    assert not home.exists() or sorted(path.name for path in home.iterdir()) == ["payloads"]


async def test_a_node_without_a_payload_is_surveyed_without_writing_to_its_disk(
    connection: LocalConnection, found: Probe
) -> None:
    seen = await survey(connection, found)
    assert (seen.home, seen.run_dir, seen.files, seen.processes) == (found.home, found.run_dir, (), ())


async def test_without_memfd_the_payload_is_in_a_temporary_file_that_goes(
    connection: LocalConnection, found: Probe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(payload_commands, "_BOOT", payload_commands._BOOT.replace("memfd_create", "no_such_call"))
    assert (await survey(connection, found)).home == found.home
    assert list(temporary.iterdir()) == []


async def test_where_the_payload_is_it_is_used_and_does_not_count_itself(
    connection: LocalConnection, found: Probe
) -> None:
    payload = Path(found.home, "payloads", build_payload().name)
    payload.parent.mkdir(parents=True)
    payload.write_bytes(build_payload().data)
    there = replace(found, payloads=frozenset({build_payload().digest}))
    assert len(payload_commands.script(there, build_payload(), ("survey",), b"")) < 10_000
    seen = await survey(connection, there)
    assert [(file.kind, file.path, file.user) for file in seen.files] == [("payload", str(payload), "")]
    report = await tidy(connection, there, TidyRequest(seen.home, seen.run_dir, files=seen.files))
    assert [result.done for result in report.results] == [True]
    assert not payload.exists()


@pytest.mark.parametrize("content", [None, b"", b"PK nonsense"])
async def test_a_payload_that_is_gone_meanwhile_or_damaged_is_sent_after_all(
    connection: LocalConnection, found: Probe, content: bytes | None
) -> None:
    payload = Path(found.home, "payloads", build_payload().name)
    payload.parent.mkdir(parents=True)
    if content is not None:
        payload.write_bytes(content)
    there = replace(found, payloads=frozenset({build_payload().digest}))
    assert len((await survey(connection, there)).files) == (0 if content is None else 1)


async def test_a_runtime_that_does_not_start_is_passed_over(connection: LocalConnection, found: Probe) -> None:
    broken = replace(found, runtimes=frozenset({"cpu-broken"}))
    assert (await survey(connection, broken)).home == found.home


@pytest.mark.parametrize(
    "pythons",
    [(), (Python(sys.executable, (3, 9, 2), has_ensurepip=False),), (replace(SYSTEM, path="/no/such/python"),)],
)
async def test_without_a_python_that_will_do_it_says_so(
    connection: LocalConnection, found: Probe, pythons: tuple[Python, ...]
) -> None:
    with pytest.raises(NodeError) as caught:
        await survey(connection, replace(found, pythons=pythons))
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert "Python 3.10 or newer" in caught.value.message
    assert "install one" in caught.value.hint


async def test_what_the_command_says_is_the_error(connection: LocalConnection, found: Probe) -> None:
    with pytest.raises(NodeError) as caught:
        await run_payload(connection, found, ("tidy",), stdin=b"{}", timeout=30)
    assert (caught.value.code, caught.value.message) == (ErrorCode.USAGE, "bad request: TidyRequest.home: missing")
    with pytest.raises(NodeError) as caught:
        await run_payload(connection, found, ("survey", "--nonsense"), timeout=30)
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert "survey" in caught.value.message


def a_survey(found: Probe, **changes: object) -> bytes:
    seen = Survey("boot", "host", 1.0, found.home, found.run_dir)
    return json.dumps(encode(seen) | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"home": "/etc"},
        {"clock": "now"},
        {"host": "x" * 5000},
        {"files": [encode(FileSeen("log", "/x" * 5000, 1, 1.0, "1"))]},
        {"files": [encode(FileSeen("log", "/x", 1, 1.0, "1"))] * 100_001},
        {"processes": [1]},
    ],
)
async def test_a_survey_that_makes_no_sense_is_refused(found: Probe, changes: dict[str, object]) -> None:
    fake = FakeConnection()
    fake.answer("survey", a_survey(found, **changes))
    with pytest.raises(NodeError) as caught:
        await survey(fake, found)
    assert caught.value.code is ErrorCode.INVALID_RESPONSE


@pytest.mark.parametrize("output", [b"", b"null", b"[" * 100_000, b'{"results": [{"what": "pid 1", "done": true}]}'])
async def test_a_report_that_makes_no_sense_is_refused(found: Probe, output: bytes) -> None:
    fake = FakeConnection()
    fake.answer("tidy", output)
    with pytest.raises(NodeError) as caught:
        await tidy(fake, found, TidyRequest(found.home, found.run_dir))
    assert caught.value.code is ErrorCode.INVALID_RESPONSE


async def test_a_command_that_dies_without_a_word_is_told_with_the_end_of_its_errors(found: Probe) -> None:
    fake = FakeConnection()
    fake.answer("survey", Completed(b"", "Traceback\nMemoryError\n", 1))
    with pytest.raises(NodeError, match="MemoryError") as caught:
        await survey(fake, found)
    assert caught.value.details["status"] == 1


async def test_a_node_that_has_nothing_of_rbee_tells_of_its_gpus(
    connection: LocalConnection, found: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is found as the driver's is: by the dynamic linker."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml.library().parent))
    monkeypatch.setenv("NVML_DOUBLE", str(nvml.fixture("one_lost")))
    told = await gpus(connection, found)
    assert (told.driver, told.cuda, told.silent) == ("535.183.01", "12.2", (GpuSilent(0, "lost", "GPU is lost"),))
    assert [(gpu.id, gpu.free_mb, gpu.ecc_errors) for gpu in told.gpus if gpu.vendor == "nvidia"] == [
        ("CUDA1", 42300, 3)
    ]


@pytest.mark.parametrize(
    "answer",
    [b"nonsense", b"[]", json.dumps(encode(GpuReport(silent=(GpuSilent(0, "lost"),) * 1000))).encode()],
)
async def test_a_report_on_gpus_that_makes_no_sense_is_refused(found: Probe, answer: bytes) -> None:
    fake = FakeConnection()
    fake.answer("gpus", answer)
    with pytest.raises(NodeError) as failure:
        await gpus(fake, found)
    assert failure.value.code is ErrorCode.INVALID_RESPONSE
