"""Which file of a repository `hf:OWNER/REPO:WANTED` means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rbee_remote.hive.models import hub
from rbee_remote.hive.models.hub import choose_file
from rbee_remote.hive.models.part_file import Retryable
from rbee_remote.protocol import ErrorCode, RemoteError, Source

FILES = [
    "README.md",
    "model-Q4_0.gguf",
    "model-Q4_K_M.gguf",
    "model-IQ4_K_M.gguf",
    "old/model-Q4_K_M.gguf",
    "mmproj-model-Q8_0.gguf",
    "model-F16-00001-of-00002.gguf",
    "Q6_K/model-Q6_K-00002-of-00002.gguf",
    "Q6_K/model-Q6_K-00001-of-00002.gguf",
    "model-Q5_0-00001-of-00001.gguf",
]
SIZES = dict.fromkeys(FILES, 1)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("old/model-Q4_K_M.gguf", "old/model-Q4_K_M.gguf"),
        ("Q4_K_M", "model-Q4_K_M.gguf"),
        ("q4_k_m", "model-Q4_K_M.gguf"),
        ("IQ4_K_M", "model-IQ4_K_M.gguf"),
        ("Q4_0", "model-Q4_0.gguf"),
        ("", "model-Q4_K_M.gguf"),
        ("Q6_K", "Q6_K/model-Q6_K-00001-of-00002.gguf"),
        ("Q6_K/model-Q6_K-00002-of-00002.gguf", "Q6_K/model-Q6_K-00001-of-00002.gguf"),
        ("Q5_0", "model-Q5_0-00001-of-00001.gguf"),
    ],
)
def test_a_name_or_a_quantisation_means_one_file(wanted: str, expected: str) -> None:
    assert choose_file(SIZES, wanted, "o/r").name == expected


@pytest.mark.parametrize("wanted", ["F16", "model-F16-00001-of-00002.gguf", "model-F16-00002-of-00002.gguf"])
def test_a_split_model_without_all_its_parts_is_told_of(wanted: str) -> None:
    with pytest.raises(RemoteError) as failure:
        choose_file(SIZES, wanted, "o/r")
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND
    assert "only 1 of the 2 parts" in failure.value.message
    assert "model-F16-00002-of-00002.gguf is not there" in failure.value.hint


@pytest.mark.parametrize("wanted", ["Q4", "Q8_0", "K_M.*", "README"])
def test_anything_else_lists_what_there_is(wanted: str) -> None:
    with pytest.raises(RemoteError) as failure:
        choose_file(SIZES, wanted, "o/r")
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND
    assert "model-Q4_K_M.gguf" in failure.value.details["files"]


def test_the_only_file_needs_no_name() -> None:
    assert choose_file({"whatever.gguf": 1, "config.json": 1}, "", "o/r").name == "whatever.gguf"
    with pytest.raises(RemoteError):
        choose_file({"one.gguf": 1, "two.gguf": 1}, "", "o/r")


def resolved(monkeypatch: pytest.MonkeyPatch, commit: object = "a" * 40, **said: Any) -> hub.HubModel:
    """What comes of a hub that says this of one file."""
    lfs = SimpleNamespace(sha256=said["sha256"]) if "sha256" in said else None
    file = SimpleNamespace(rfilename=said.get("name", "m-Q8_0.gguf"), size=said.get("size", 1), lfs=lfs)
    more = SimpleNamespace(rfilename="m-F16.gguf", size=1, lfs=None)
    monkeypatch.setattr(hub, "_ask", lambda *_: SimpleNamespace(sha=commit, siblings=[file, more]))
    return hub.resolve(Source("hf", repo="o/r"), token="", endpoint="http://127.0.0.1:1", room=10)


@pytest.mark.parametrize(
    "said",
    [
        {"size": "1"},
        {"size": -1},
        {"size": 1.5},
        {"sha256": 5},
        {"sha256": None},
        {"sha256": "../" * 21 + "x"},
        {"name": None},
        {"commit": None},
        {"commit": 5},
        {"commit": "../../x"},
    ],
)
def test_an_answer_of_the_hub_that_is_none_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    with pytest.raises(Retryable, match="hub"):
        resolved(monkeypatch, **said)


def test_names_that_cannot_be_shown_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch, name="m\x1b-Q8_0.gguf").source.file == "m-F16.gguf"


def test_a_checksum_in_capitals_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(monkeypatch, sha256="AB" * 32).sha256 == "ab" * 32
