"""A helper that ends without saying what went wrong."""

from __future__ import annotations

import sys

import pytest

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system import helper


def ends(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(helper, "payload_command", lambda *_: [sys.executable, "-c", code])


@pytest.mark.parametrize("said", ["", "print('Segmentation fault')", "print('{\"bytes\": 5}')"])
async def test_one_that_dies_without_a_word_is_told_by_the_callers_code(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    ends(monkeypatch, f"{said}\nimport os, signal, sys; sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RemoteError, match="download ended with status -9") as caught:
        await helper.run_helper("download", code=ErrorCode.DOWNLOAD_FAILED)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED


async def test_one_that_says_what_went_wrong_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, 'print(\'{"error": {"code": "DISK_FULL", "message": "no room"}}\'); raise SystemExit(1)')
    with pytest.raises(RemoteError, match="no room") as caught:
        await helper.run_helper("download", code=ErrorCode.DOWNLOAD_FAILED)
    assert caught.value.code is ErrorCode.DISK_FULL
