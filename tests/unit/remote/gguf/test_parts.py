"""Parts of a split model: read as one, and refused where they are not of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rbee_remote.gguf.file import GgufFile, Tensor
from rbee_remote.gguf.metadata import read_meta
from rbee_remote.gguf.parts import joined
from rbee_remote.protocol import ErrorCode, RemoteError
from tests import gguf_split, tiny_models


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("whole") / "tiny.gguf", "llama")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return gguf_split.split(whole, tmp_path, 3)


def invalid(path: Path) -> str:
    with pytest.raises(RemoteError) as failure:
        read_meta(path)
    assert failure.value.code is ErrorCode.MODEL_INVALID
    return failure.value.message


@pytest.mark.parametrize("first_has_tensors", [True, False])
def test_parts_say_what_the_whole_file_says(whole: Path, tmp_path: Path, first_has_tensors: bool) -> None:
    first = gguf_split.split(whole, tmp_path, 3, first_has_tensors=first_has_tensors)[0]
    assert read_meta(first) == read_meta(whole)


def test_one_part_of_one_is_whole(whole: Path, tmp_path: Path) -> None:
    path = gguf_split.split(whole, tmp_path, 1)[0].rename(tmp_path / "m-00001-of-00001.gguf")
    assert read_meta(path) == read_meta(whole)


def test_a_part_under_another_name_is_told(parts: list[Path], tmp_path: Path) -> None:
    assert "one of 3 parts" in invalid(Path(shutil.copy(parts[0], tmp_path / "model.gguf")))


def test_parts_in_another_order_are_told(parts: list[Path]) -> None:
    swapped = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(swapped)
    assert "named part 2 is part 3" in invalid(parts[0])


def test_parts_of_another_count_are_told(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    shutil.copy(gguf_split.split(whole, folder, 2)[1], parts[1])
    assert "one of 3, and by its content one of 2 parts" in invalid(parts[0])
    shutil.copy(whole, parts[1])
    assert "no part of a split model" in invalid(parts[0])


def test_parts_of_another_model_are_told(parts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = gguf_split.split(tiny_models.write(folder / "tiny.gguf", "mamba"), folder, 3)
    shutil.copy(other[1], parts[1])
    assert "different models" in invalid(parts[0])


def test_a_part_that_is_cut_is_named(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes()[:-100])
    assert parts[2].name in invalid(parts[0])


@pytest.mark.parametrize("claimed", [[1, 2], "two", 3, True])
def test_any_value_may_stand_where_the_number_of_tensors_should(claimed: object) -> None:
    files = [
        GgufFile(
            {"split.count": 2, "split.no": number, "split.tensors.count": claimed},
            {},
            (Tensor(f"t{number}", (1,), 0, 0),),
            1,
        )
        for number in range(2)
    ]
    with pytest.raises(ValueError, match="different models"):
        joined(files)


@pytest.mark.parametrize("count", [[2, 2], "2\x1b[31m", 2.5])
def test_a_count_of_parts_that_is_none_is_not_repeated(count: object) -> None:
    file = GgufFile({"split.count": count}, {}, (Tensor("t", (1,), 0, 0),), 1)
    for files in ([file], [file, file]):
        with pytest.raises(ValueError, match="an unknown number of parts"):
            joined(files)
