"""The keeper's own downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.models.ref import parse_ref
from rbee.models.store import ModelStore
from rbee.setup.base.payload import Payload
from rbee_remote.protocol import DownloadRequest, ErrorCode


async def test_a_download_that_dies_without_a_word_has_failed(tmp_path: Path) -> None:
    broken = Payload("0" * 16, b"not a payload", "0" * 64)
    store = ModelStore(tmp_path / "models", broken, tmp_path / "download.log")
    ref = parse_ref("hf:owner/tiny:Q4_0")
    with pytest.raises(NodeError, match="the download ended with status") as caught:
        await store.fetch(ref, DownloadRequest(ref.canonical, ref.sources), lambda _: None, lambda _: None)
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert str(tmp_path / "download.log") in caught.value.hint
