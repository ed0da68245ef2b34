"""A split model by the `download` process: all its parts, each resumed and checked, or nothing."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from rbee_remote.protocol import Source, encode
from rbee_remote.protocol.splits import digest_of_parts, numbered
from tests.hub import COMMIT, Hub, Trouble
from tests.unit.remote.hive.models.test_download import REPO, TOKEN, download, failure, https, left

COUNT = 3
PARTS = [random.Random(seed).randbytes(200_000 + seed) for seed in range(COUNT)]
SIZE = sum(map(len, PARTS))
SHA256 = digest_of_parts(hashlib.sha256(part).hexdigest() for part in PARTS)
NAMES = [numbered("Q8_0/tiny-Q8_0.gguf", number, COUNT) for number in range(1, COUNT + 1)]
FILES = [numbered("model.gguf", number, COUNT) for number in range(1, COUNT + 1)]
HF = Source(kind="hf", repo=REPO, file="Q8_0")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def fill(hub: Hub, *, without: int | None = None) -> None:
    for number, (name, content) in enumerate(zip(NAMES, PARTS, strict=True)):
        if number != without:
            hub.add(REPO, name, content)


def fill_plain(hub: Hub) -> str:
    """The address of the first."""
    urls = [hub.add_plain(name.rpartition("/")[2], content) for name, content in zip(NAMES, PARTS, strict=True)]
    return urls[0]


def contents(target: Path) -> list[bytes]:
    return [target.with_name(name).read_bytes() for name in FILES]


@pytest.mark.parametrize("file", ["Q8_0", *NAMES])
def test_a_quantisation_or_any_part_brings_all(hub: Hub, target: Path, file: str) -> None:
    fill(hub)
    *progress, result = download(hub, target, Source(kind="hf", repo=REPO, file=file))
    resolved = encode(Source(kind="hf", repo=REPO, file=NAMES[0], revision=COMMIT))
    path = str(target.with_name(FILES[0]))
    digests = [hashlib.sha256(part).hexdigest() for part in PARTS]
    assert result == {"path": path, "size": SIZE, "sha256": SHA256, "parts": digests, "resolved": resolved}
    assert contents(target) == PARTS
    assert left(target) == set(FILES)
    assert {line["total"] for line in progress} == {SIZE}
    assert progress[-1]["done"] == SIZE
    assert [line["done"] for line in progress] == sorted(line["done"] for line in progress)


def test_the_others_of_an_address_are_found_by_its_name(hub: Hub, target: Path) -> None:
    url = fill_plain(hub)
    *progress, result = download(hub, target, https(url))
    assert (result["sha256"], result["resolved"]["url"]) == (SHA256, url)
    assert contents(target) == PARTS
    assert {line["total"] for line in progress} == {SIZE}


def test_a_single_part_of_one_is_a_file_like_any_other(hub: Hub, target: Path) -> None:
    sha256 = hub.add(REPO, "m-Q8_0-00001-of-00001.gguf", PARTS[0])
    result = download(hub, target, HF)[-1]
    assert (result["path"], result["sha256"]) == (str(target), sha256)
    assert left(target) == {target.name}


@pytest.mark.parametrize("kind", ["hf", "https"])
def test_each_part_goes_on_where_it_broke_and_none_that_is_whole_comes_again(hub: Hub, target: Path, kind: str) -> None:
    """Nine breaks: more than one file may have, and each part has some."""
    url = fill_plain(hub)
    fill(hub)
    hub.trouble = Trouble(cut_after=60_000, times=12)
    assert download(hub, target, HF if kind == "hf" else https(url))[-1]["sha256"] == SHA256
    assert contents(target) == PARTS
    begun = [seen.path for seen in hub.content_requests() if seen.method == "GET" and "range" not in seen.headers]
    assert len(begun) == COUNT


def test_the_next_process_goes_on_with_all_that_is_there(hub: Hub, target: Path) -> None:
    fill(hub)
    hub.redirects_of, hub.redirects = "content", {f"/content/{REPO}/{NAMES[1]}": "http://127.0.0.1:1/"}
    assert failure(download(hub, target, HF))["details"]["tries"] == 6
    assert f"{FILES[0]}.part" in left(target)
    assert not set(FILES) & left(target)
    hub.redirects.clear()
    hub.seen.clear()
    assert download(hub, target, HF)[-1]["sha256"] == SHA256
    assert [seen.headers.get("range") for seen in hub.content_requests()] == [f"bytes={len(PARTS[0])}-", None, None]
    assert left(target) == set(FILES)


def test_a_damaged_part_is_fetched_again_and_the_others_are_not(hub: Hub, target: Path) -> None:
    fill(hub)
    hub.trouble = Trouble(corrupt=True, times=1)
    assert download(hub, target, HF)[-1]["sha256"] == SHA256
    assert contents(target) == PARTS
    assert len(hub.content_requests()) == COUNT + 1


def test_a_part_that_stays_damaged_leaves_no_model(hub: Hub, target: Path) -> None:
    fill(hub)
    hub.trouble = Trouble(corrupt=True)
    error = failure(download(hub, target, HF))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "checksum" in error["message"]
    assert not set(FILES) & left(target)


def test_a_missing_part_is_told_before_a_byte_has_come(hub: Hub, target: Path) -> None:
    fill(hub, without=1)
    error = failure(download(hub, target, HF))
    assert error["code"] == "MODEL_NOT_FOUND"
    assert "only 2 of the 3 parts" in error["message"]
    url = fill_plain(hub)
    hub.plain.pop(NAMES[1].rpartition("/")[2])
    error = failure(download(hub, target, https(url)))
    assert error["code"] == "MODEL_NOT_FOUND"
    assert "one of 3 parts" in error["message"]
    assert [seen for seen in hub.content_requests() if seen.method == "GET"] == []
    assert left(target) == set()


def test_a_disk_without_room_for_all_is_told_before_a_byte_has_come(hub: Hub, target: Path) -> None:
    fill(hub)
    huge = PARTS[2]
    hub.sizes[NAMES[2]] = 10**17
    error = failure(download(hub, target, HF))
    assert error["code"] == "DISK_FULL"
    assert error["details"]["needed_mb"] >= 10**11
    assert hub.content_requests() == []
    assert hub.files[REPO][NAMES[2]] == huge


def test_parts_that_only_a_token_opens(tls_hub: Hub, target: Path) -> None:
    fill(tls_hub)
    tls_hub.token = TOKEN
    assert download(tls_hub, target, HF, token=TOKEN)[-1]["sha256"] == SHA256
    assert tls_hub.tokens()["content"] == {None}
