"""A model that cannot serve what it is fetched for is given up by its first bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from rbee_remote.gguf.early import LOOKED_AT, first_abilities
from rbee_remote.hive.models.early_look import EarlyLook
from rbee_remote.protocol import DownloadRequest, ErrorCode, RemoteError
from tests import tiny_adapters, tiny_models
from tests import tiny_encoders as tiny
from tests.hub import Hub
from tests.unit.remote.hive.models.test_download import FILE, REPO, download, failure

MANY = 2**22


def beginning(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


@pytest.mark.parametrize("length", [300, 600, 10**6])
def test_the_beginning_of_an_encoder_tells(tmp_path: Path, length: int) -> None:
    tiny.write_bert(tmp_path / "m.gguf", gguf.PoolingType.RANK)
    wanted = ("rerank",) if length > 300 else ("embeddings",)
    assert first_abilities(beginning(tmp_path / "m.gguf", length)) in (wanted, ("rerank",))


def test_what_does_not_tell(tmp_path: Path) -> None:
    path = tiny_models.write(tmp_path / "m.gguf", "llama")
    assert first_abilities(path) == ("chat", "completions", "embeddings")
    for length in (0, 3, 20, 24):
        assert first_abilities(beginning(path, length)) == ()
    path.write_bytes(b"<html>" * 100)
    assert first_abilities(path) == ()


@pytest.mark.parametrize(("ability", "is_refused"), [("chat", True), ("embeddings", False), ("", False)])
def test_a_download_for_a_chat_ends_early(tmp_path: Path, ability: str, is_refused: bool) -> None:
    tiny.write_bert(tmp_path / "abc.gguf.part", gguf.PoolingType.MEAN)
    look = EarlyLook(DownloadRequest("hf:a/b", (), ability=ability), tmp_path / "abc.gguf")
    look(LOOKED_AT)  # what is in memory has not reached the disk
    if not is_refused:
        look(MANY)
        return
    with pytest.raises(RemoteError, match="hf:a/b only embeds texts") as failure:
        look(MANY)
    assert failure.value.code is ErrorCode.USAGE
    assert failure.value.details == {"able": ["embeddings"]}


def test_a_model_that_chats_is_fetched(tmp_path: Path) -> None:
    tiny_models.write(tmp_path / "abc.gguf.part", "llama")
    EarlyLook(DownloadRequest("m", (), ability="chat"), tmp_path / "abc.gguf")(MANY)
    EarlyLook(DownloadRequest("m", (), ability="chat"), tmp_path / "none.gguf")(MANY)


def test_the_download_process_fetches_no_encoder_for_a_chat(hub: Hub, tmp_path: Path) -> None:
    tiny.write_bert(tmp_path / "m.gguf", gguf.PoolingType.MEAN)
    hub.add(REPO, FILE, (tmp_path / "m.gguf").read_bytes() + bytes(50_000_000))
    (tmp_path / "to").mkdir()
    error = failure(download(hub, tmp_path / "to/m.gguf", ability="chat"))
    assert error["code"] == "USAGE"
    assert "m only embeds texts" in error["message"]
    (part,) = (tmp_path / "to").glob("*.part")
    assert part.stat().st_size < 10_000_000


def test_an_adapter_tells_that_it_is_no_model(tmp_path: Path) -> None:
    tiny_adapters.write(tmp_path / "abc.gguf.part", 1)
    with pytest.raises(RemoteError, match="m is a LoRA adapter") as raised:
        EarlyLook(DownloadRequest("m", (), ability="chat"), tmp_path / "abc.gguf")(MANY)
    assert raised.value.hint == "name that model, and this one as its adapter"
    EarlyLook(DownloadRequest("m", ()), tmp_path / "abc.gguf")(MANY)
