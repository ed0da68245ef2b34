"""Downloads that several ask for at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from rbee_remote.hive.models import pulls as module
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.models.pulls import Pulls
from rbee_remote.protocol import DownloadRequest, ErrorCode, RemoteError, Source

HUB = (Source(kind="hf", repo="a/b"),)


@pytest.mark.parametrize(("ability", "tries"), [("chat", 1), ("embeddings", 2), ("", 2)])
async def test_a_model_given_up_for_somebody_else_is_fetched_for_who_can_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ability: str, tries: int
) -> None:
    """Both watch one download, which was begun for a chat."""
    asked: list[str] = []
    both = anyio.Event()

    async def run_helper(*words: str, request: dict[str, Any], on_line: Callable[[Any], None], code: ErrorCode) -> Any:
        asked.append(request["ability"])
        if request["ability"] == "chat":
            await both.wait()
            raise RemoteError(ErrorCode.USAGE, "m only embeds texts", details={"able": ["embeddings"]})
        raise RemoteError(ErrorCode.DOWNLOAD_FAILED, "the second one")

    monkeypatch.setattr(module, "run_helper", run_helper)
    errors: dict[str, RemoteError] = {}

    async def pull(pulls: Pulls, ability: str) -> None:
        with pytest.raises(RemoteError) as caught:
            async for _ in pulls.pull(DownloadRequest("m", HUB, ability=ability)):
                pass
        errors[ability] = caught.value

    async with anyio.create_task_group() as tasks:
        pulls = Pulls(Catalog(tmp_path), tasks)
        async with anyio.create_task_group() as clients:
            for each in ("chat", ability):
                clients.start_soon(pull, pulls, each)
                await anyio.wait_all_tasks_blocked()
            both.set()
    assert len(asked) == tries
    assert errors["chat"].code is ErrorCode.USAGE
    assert errors[ability].message == ("m only embeds texts" if ability == "chat" else "the second one")
