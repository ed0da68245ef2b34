"""Whoever asks a driver that never answers goes on, and later asks do not wait at all."""

from __future__ import annotations

import threading

import pytest

from rbee_remote.protocol.gpus import Reason
from rbee_remote.system import gpu_kernel, gpu_report, gpu_users
from rbee_remote.system.time_limit import TimeLimit
from tests.doubles import nvml


def test_an_answer_and_an_error_come_through() -> None:
    limit = TimeLimit[int](10.0)
    assert limit.ask(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        limit.ask(lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        limit.ask(_raise_timeout)


def _raise_timeout() -> int:
    raise TimeoutError


def test_while_one_is_stuck_nobody_waits_and_then_it_is_asked_again() -> None:
    limit, release, asked = TimeLimit[int](0.05), threading.Event(), list[threading.Thread]()

    def question() -> int:
        asked.append(threading.current_thread())
        release.wait(30)
        return len(asked)

    assert limit.ask(question) is None
    assert [limit.ask(question) for _ in range(100)] == [None] * 100
    assert len(asked) == 1, "a thread for each would pile up"
    release.set()
    asked[0].join()
    assert limit.ask(question) == 2


def test_a_driver_that_hangs_is_told_with_what_the_kernel_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.install(monkeypatch, "hangs")
    monkeypatch.setattr(gpu_report, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(gpu_kernel, "log_lines", lambda: ["NVRM: Xid (PCI:0000:01:00): 79, fell off"])
    report = gpu_report.report({})
    assert report.reason == Reason.TIMEOUT.value
    assert [xid.code for xid in report.xids] == [79]
    monkeypatch.setattr(gpu_users, "_DRIVER", TimeLimit(0.05))
    assert gpu_users.gpu_pids() == frozenset(), "the end of a worker does not wait for it"
