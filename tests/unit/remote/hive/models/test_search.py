"""`search` against the hub's stand-in: what is found, what it needs, and what strangers' answers do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFWriter

from rbee_remote.gguf.beginning import first_values
from rbee_remote.gguf.metadata import meta_of
from rbee_remote.hive.models import search as module
from rbee_remote.hive.models.search import search
from rbee_remote.protocol import ErrorCode, RemoteError, decode, encode
from rbee_remote.protocol.search import Room, SearchAnswer, SearchRequest
from rbee_remote.system.command import payload_command
from tests.hub import Hub, running_hub

ROOMS = (Room("gpu1", 1000, 1), Room("cpu1", 64_000, free_mb=1000))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a model of 32 layers, with a vocabulary behind what is read of it."""
    path = tmp_path_factory.mktemp("head") / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(32)
    writer.add_context_length(131072)
    writer.add_embedding_length(4096)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_token_list([f"a word of the vocabulary {number}" for number in range(40_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def hub(head: bytes) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.add("o/Qwen3-8B-GGUF", "Qwen3-8B-Q4_K_M.gguf", head)
        hub.add("o/Qwen3-8B-GGUF", "Qwen3-8B-Q8_0.gguf", head)
        hub.add("o/Qwen3-8B-GGUF", "mmproj-F16.gguf", b"x")
        hub.sizes |= {"Qwen3-8B-Q4_K_M.gguf": 5_000_000_000, "Qwen3-8B-Q8_0.gguf": 8_700_000_000}
        hub.add("o/qwen3-broken-GGUF", "broken-Q4_0.gguf", b"no GGUF at all")
        hub.add("o/Llama-GGUF", "Llama-Q4_0.gguf", head)
        hub.add("o/Qwen3-8B", "model.safetensors", b"x")
        yield hub


def test_a_head_that_is_cut_says_what_is_before_the_cut(head: bytes) -> None:
    assert len(head) > module.HEAD_BYTES
    meta = meta_of(first_values(head[: module.HEAD_BYTES]))
    assert (meta.n_layers, meta.n_ctx_train, meta.n_head_kv, meta.n_vocab) == (32, 131072, 8, 40_000)
    with pytest.raises(ValueError, match="GGUF"):
        first_values(b"<html>")
    for length in (4, 10, 24, 100):
        with pytest.raises(ValueError, match=r"missing|header"):
            meta_of(first_values(head[:length]))


def test_what_is_found_comes_with_sizes_and_what_it_fits_on(hub: Hub) -> None:
    answer = search(SearchRequest("qwen3", 5, ROOMS, ctx=32768, endpoint=hub.url))
    assert [model.repo for model in answer.models] == ["o/Qwen3-8B-GGUF", "o/qwen3-broken-GGUF"]
    found, broken = answer.models
    assert (found.architecture, found.ctx, found.downloads) == ("llama", 32768, 1000)
    assert [(quant.quant, quant.size) for quant in found.quants] == [
        ("Q4_K_M", 5_000_000_000),
        ("Q8_0", 8_700_000_000),
    ]
    small, large = found.quants
    assert [(fits.node, fits.fits, fits.free) for fits in small.fits] == [("gpu1", False, None), ("cpu1", True, False)]
    kv_mb = 32 * 8 * 128 * 2 * 32768 * 2 // 10**6
    assert all((fits.needed_mb or 0) > 5000 + kv_mb for fits in small.fits)
    assert all((more.needed_mb or 0) > (less.needed_mb or 0) for more, less in zip(large.fits, small.fits, strict=True))
    assert [quant.fits for quant in broken.quants] == [()]


def test_only_the_beginning_of_one_file_of_each_is_read(hub: Hub) -> None:
    search(SearchRequest("qwen3", 5, ROOMS, endpoint=hub.url))
    read = hub.content_requests()
    assert sorted(seen.path for seen in read) == [
        "/content/o/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf",
        "/content/o/qwen3-broken-GGUF/broken-Q4_0.gguf",
    ]
    assert {seen.headers["range"] for seen in read} == {f"bytes=0-{module.HEAD_BYTES - 1}"}


def test_without_nodes_nothing_is_read_of_files(hub: Hub) -> None:
    answer = search(SearchRequest("llama", 5, endpoint=hub.url))
    assert [quant.file for quant in answer.models[0].quants] == ["Llama-Q4_0.gguf"]
    assert not hub.content_requests()


def test_what_no_ref_could_name_or_no_terminal_should_see_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["o/r;reboot", "../r", "o/r/s", "o/\x1b[2J", "o", 5, None, "o/$(x)", "-o/r", "o/fine-GGUF"]
    tags = ["license:\x1b[2J", 5, "license:mit"]
    listed = [{"id": name, "downloads": "1", "tags": tags} for name in ids] + [5]
    answers = iter([listed])
    monkeypatch.setattr(module._Hub, "ask", lambda *_: next(answers, {}))
    answer = search(SearchRequest("x", 20, ROOMS, endpoint="http://127.0.0.1:9"))
    assert [(model.repo, model.license, model.downloads) for model in answer.models] == [("o/fine-GGUF", "mit", 0)]


def test_the_limit_holds(hub: Hub) -> None:
    assert len(search(SearchRequest("", 1, endpoint=hub.url)).models) == 1


def test_a_hub_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RemoteError, match="the hub cannot be searched") as failure:
        search(SearchRequest("qwen3", 5, endpoint="http://127.0.0.1:9"))
    assert failure.value.code is ErrorCode.DOWNLOAD_FAILED
    assert failure.value.details == {"network": False}
    assert "HF_ENDPOINT" in failure.value.hint


def test_a_token_is_not_sent_over_plain_http(hub: Hub) -> None:
    search(SearchRequest("qwen3", 5, ROOMS, token="hf_x", endpoint=hub.url))
    assert hub.tokens() == {"hub": {None}, "content": {None}}


def test_the_process_answers_in_one_line(hub: Hub, tmp_path: Path) -> None:
    request = json.dumps(encode(SearchRequest("qwen3 8b", 5, ROOMS, endpoint=hub.url)))
    done = subprocess.run(
        [*payload_command(), "search"],
        input=request,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    answer = decode(SearchAnswer, json.loads(done.stdout))
    assert [model.repo for model in answer.models] == ["o/Qwen3-8B-GGUF"]
