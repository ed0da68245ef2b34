"""What a ref stands for now: one question to the hub, by the `download` process, and nothing is fetched."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import anyio
import pytest

from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.models.pulls import Pulls
from rbee_remote.protocol import DownloadRequest, ErrorCode, NewestModel, RemoteError, Source, decode, encode
from rbee_remote.protocol.splits import digest_of_parts
from rbee_remote.system.command import payload_command
from tests.hub import COMMIT, Hub
from tests.patience import PATIENCE_S
from tests.unit.remote.hive.models.test_download import REPO, TOKEN

HF = Source(kind="hf", repo=REPO, file="Q8_0")


def ask(hub: Hub, **fields: str) -> dict[str, object]:
    request = DownloadRequest("m", (HF,), endpoint=fields.pop("endpoint", hub.url), **fields)  # type: ignore[arg-type]
    trust = {"SSL_CERT_FILE": str(hub.trusted)} if hub.trusted else {}
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        payload_command("download", "--ask"),
        input=json.dumps(encode(request)).encode(),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env=env | {"HF_HOME": "/nowhere"} | trust,
    )
    assert TOKEN.encode() not in done.stdout + done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_a_split_model_is_told_by_its_first_part_and_the_digest_of_all(tls_hub: Hub) -> None:
    tls_hub.token = TOKEN
    digests = [tls_hub.add(REPO, f"m-Q8_0-0000{number}-of-00002.gguf", bytes(number)) for number in (1, 2)]
    told = decode(NewestModel, ask(tls_hub, token=TOKEN))
    assert told == NewestModel(f"hf:{REPO}:m-Q8_0-00001-of-00002.gguf@{COMMIT}", digest_of_parts(digests))
    assert tls_hub.content_requests() == []


def test_a_hub_that_cannot_be_reached_is_told_as_such(hub: Hub) -> None:
    error = RemoteError.decode(ask(hub, endpoint="http://127.0.0.1:1"))
    assert error.code is ErrorCode.DOWNLOAD_FAILED
    assert error.details["network"] is False


async def test_only_a_hub_is_asked(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        pulls = Pulls(Catalog(tmp_path), tasks)
        with pytest.raises(RemoteError) as failure:
            await pulls.newest(DownloadRequest("https://h.example/m", (Source("https", url="https://h.example/m"),)))
    assert failure.value.code is ErrorCode.USAGE
