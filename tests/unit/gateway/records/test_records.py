"""What is kept of a request: where, in what form, and what never stops it."""

from __future__ import annotations

import json
import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rbee import audit
from rbee.base.settings import Settings
from rbee.gateway.base.interfaces import Client
from rbee.gateway.records import records as records_module
from rbee.gateway.records import request_log, usage
from rbee.gateway.records.metrics import Metrics
from rbee.gateway.records.records import Records
from rbee.gateway.records.usage import Counts
from rbee_remote.protocol.audit import AUDIT_LOG
from tests.patience import PATIENCE_S
from tests.unit.gateway.samples import MODEL, WORKER, ended


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_request_is_logged_audited_and_counted_once(settings: Settings) -> None:
    with Records(settings, Metrics()) as records:
        records.ended(ended())
    path = settings.log / "gateway.log"
    (line,) = lines(path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "kind": "request", "request": "5c1f", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "key": "alice", "fingerprint": "0123456789ab", "address": "10.0.0.9", "method": "POST",
        "path": "/v1/chat/completions", "status": 200, "asked": "chat", "model": MODEL, "node": "gpu1",
        "worker": WORKER.id, "failovers": 0, "seconds": 1.5, "first_s": 0.5, "queue_s": 0.1, "tokens_in": 100,
        "tokens_cached": 60, "tokens_out": 11,
    }  # fmt: skip
    (entry,) = lines(settings.log / AUDIT_LOG)
    assert (entry["action"], entry["outcome"], entry["node"]) == ("gateway.request", "ok", "gpu1")
    assert (entry["key"], entry["fingerprint"], entry["request"]) == ("alice", "0123456789ab", "5c1f")
    assert usage.read(usage.default_path(settings), "key") == {"alice": Counts(1, 0, 100, 60, 11, 1.5)}
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, usage.default_path(settings))} == {0o600}


def test_what_failed_is_told_with_its_code_and_no_control_character(settings: Settings) -> None:
    with Records(settings, Metrics()) as records:
        records.ended(ended(status=503, finish="WORKER_GONE", worker=None, usage=None, first_s=None))
        records.ended(ended(status=404, finish="MODEL_NOT_FOUND", model="", asked="x\n\x1b[2J" * 100, client=Client()))
    first, second = lines(settings.log / "gateway.log")
    assert (first["finish"], first["status"], "node" in first, "first_s" in first) == ("WORKER_GONE", 503, False, False)
    assert len(second["asked"]) == request_log.LONGEST
    assert b"\x1b" not in (settings.log / "gateway.log").read_bytes()
    assert [entry["outcome"] for entry in lines(settings.log / AUDIT_LOG)] == ["WORKER_GONE", "MODEL_NOT_FOUND"]
    assert usage.read(usage.default_path(settings), "node") == {"": Counts(1, 1, 0, 0, 0, 1.5)}


def test_wrong_keys_are_counted_alone_and_lists_and_limits_are_not_audited(settings: Settings) -> None:
    metrics = Metrics()
    with Records(settings, metrics) as records:
        for _ in range(1000):
            records.ended(
                ended(status=401, finish="INVALID_API_KEY", model="", client=Client(), worker=None, was_let_in=False)
            )
        records.ended(ended(method="GET", path="/v1/models", model="", worker=None))
        records.ended(ended(status=429, finish="RATE_LIMITED", worker=None))
    assert [line["status"] for line in lines(settings.log / "gateway.log")] == [200, 429]
    assert lines(settings.log / AUDIT_LOG) == []
    assert b'outcome="invalid_api_key"} 1000.0' in metrics.render("")[0]


def test_what_the_gateway_says_of_itself_is_in_the_same_log(settings: Settings) -> None:
    with Records(settings, Metrics()):
        logging.getLogger("rbee.gateway.nodes.fleet").info("gpu1 is up")
        logging.getLogger("asyncssh").info("never mind")
        logging.getLogger("uvicorn.error").error("ASGI callable returned without completing response.")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logging.getLogger("other").exception("it %s", "failed")
    first, second = lines(settings.log / "gateway.log")
    assert (first["kind"], first["level"], first["from"], first["message"]) == (
        "log", "info", "rbee.gateway.nodes.fleet", "gpu1 is up",
    )  # fmt: skip
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert "ZeroDivisionError" in second["traceback"]
    logging.getLogger("rbee.gateway.nodes.fleet").warning("not any more")
    assert len(lines(settings.log / "gateway.log")) == 2


def test_what_strangers_have_the_server_say_is_said_once_in_a_while(settings: Settings) -> None:
    with Records(settings, Metrics()):
        for _ in range(1000):
            logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("uvicorn.error").warning("Unsupported upgrade request.")
    said = [line["message"] for line in lines(settings.log / "gateway.log")]
    assert said == ["Invalid HTTP request received.", "Unsupported upgrade request."]


def test_the_log_is_kept_small(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_BYTES", 2000)
    with Records(settings, Metrics()) as records:
        for _ in range(30):
            records.ended(ended())
    found = {path.name: path.stat() for path in settings.log.glob("gateway.log*")}
    assert set(found) == {"gateway.log", "gateway.log.1"}
    assert all(status.st_size <= 2000 and stat.S_IMODE(status.st_mode) == 0o600 for status in found.values())


def blocked(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The thread's first write waits: (that it has come so far, that it may go on)."""
    come, go_on = threading.Event(), threading.Event()
    original: Callable[..., None] = audit.record

    def record(*arguments: Any, **values: Any) -> None:
        come.set()
        go_on.wait()
        original(*arguments, **values)

    monkeypatch.setattr(audit, "record", record)
    return come, go_on


def test_a_disk_that_hangs_costs_lines_and_no_request(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records_module, "MOST_WAITING", 5)
    come, go_on = blocked(monkeypatch)
    with Records(settings, Metrics()) as records:
        records.ended(ended())
        come.wait()
        for _ in range(20):
            records.ended(ended())
        go_on.set()
    assert len(lines(settings.log / AUDIT_LOG)) == 6
    assert "records of 15 requests were lost" in caplog.text


def test_usage_is_written_a_moment_later_without_waiting_for_the_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "WRITE_EVERY_S", 0.01)
    written = threading.Event()
    original = usage.write

    def write(*arguments: Any) -> None:
        original(*arguments)
        written.set()

    monkeypatch.setattr(usage, "write", write)
    with Records(settings, Metrics()) as records:
        records.ended(ended())
        assert written.wait(PATIENCE_S)
        assert usage.read(usage.default_path(settings), "key")["alice"].requests == 1


def test_usage_that_cannot_be_written_stops_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage.default_path(settings).mkdir(parents=True)
    with Records(settings, Metrics()) as records:
        records.ended(ended())
    assert "usage is not written for now" in caplog.text
    assert len(lines(settings.log / "gateway.log")) >= 1


def test_a_log_on_a_full_disk_stops_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with Records(settings, Metrics()) as records:
        monkeypatch.setattr(request_log.RequestLog, "shouldRollover", lambda *_: 1 / 0)
        records.ended(ended())
    assert len(lines(settings.log / AUDIT_LOG)) == 1
