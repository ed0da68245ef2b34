"""Names of split GGUF files: what belongs together, what is missing, and what stands for the whole."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.protocol import splits
from rbee_remote.protocol.splits import FileGroup, Part, digest_of_parts, first_part, grouped, numbered, parts_of

_THREE = ("m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf")


@pytest.mark.parametrize("name", [*_THREE, "m-00002-of-00003.gguf"])
def test_any_part_names_all(name: str) -> None:
    assert parts_of(name) == _THREE
    assert first_part(name) == _THREE[0]


@pytest.mark.parametrize(
    "name",
    [
        "model.gguf",
        "m-00001-of-00001.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-1-of-3.gguf",
        "m-00001-of-00003.safetensors",
        "m-00001-of-99999.gguf",
        "",
    ],
)
def test_other_names_are_whole_files(name: str) -> None:
    assert parts_of(name) == (name,)


def test_folders_and_the_ending_are_kept() -> None:
    assert first_part("/models/Q4_K_M/m-00002-of-00002.GGUF") == "/models/Q4_K_M/m-00001-of-00002.GGUF"


def test_groups_are_told_with_what_is_missing() -> None:
    names = ["README.md", "Q8/b-00002-of-00002.gguf", "whole.gguf", _THREE[2], _THREE[0], "one-00001-of-00001.gguf"]
    assert grouped(names) == [
        FileGroup(("README.md",)),
        FileGroup(("Q8/b-00001-of-00002.gguf", "Q8/b-00002-of-00002.gguf"), ("Q8/b-00001-of-00002.gguf",)),
        FileGroup(("whole.gguf",)),
        FileGroup(_THREE, (_THREE[1],)),
        FileGroup(("one-00001-of-00001.gguf",)),
    ]
    group = grouped(_THREE)[0]
    assert (group.name, group.is_whole, group.is_split) == (_THREE[0], True, True)


def test_the_name_of_a_part_for_a_whole_files_name() -> None:
    assert numbered("abc.gguf", 2, 3) == "abc-00002-of-00003.gguf"
    assert numbered("abc.gguf", 1, 1) == "abc.gguf"


def test_the_digest_of_one_file_is_its_own_and_of_parts_depends_on_their_order() -> None:
    assert digest_of_parts(["aa"]) == "aa"
    assert digest_of_parts(["aa", "bb"]) == hashlib.sha256(b"aa\nbb\n").hexdigest()
    assert digest_of_parts(["bb", "aa"]) != digest_of_parts(["aa", "bb"])


@given(st.text(), st.integers(2, splits.MAX_PARTS), st.data())
def test_a_part_is_found_by_the_name_that_it_makes(stem: str, count: int, data: st.DataObject) -> None:
    part = Part(stem, data.draw(st.integers(1, count)), count)
    assert splits.part_of(part.name) == part
    assert part.name in part.all
    assert len(set(part.all)) == count
