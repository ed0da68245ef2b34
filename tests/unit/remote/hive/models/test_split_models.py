"""A split model on a node: registered, told, digested and removed as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rbee_remote.hive.digests import Digests
from rbee_remote.hive.fit.meter import subject_of
from rbee_remote.hive.models import file_digest
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.models.registration import register
from rbee_remote.protocol import ErrorCode, RegisterRequest, RemoteError, WorkerOptions
from rbee_remote.protocol.splits import digest_of_parts, parts_of
from rbee_remote.sweep import files
from rbee_remote.system.hashing import sha256_of
from rbee_remote.system.layout import Layout
from tests import gguf_split, tiny_models
from tests.unit.remote.hive.test_supervisor import layout as layout
from tests.unit.remote.hive.test_supervisor import supervising

COUNT = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("whole") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def made(whole: Path) -> list[Path]:
    folder = whole.parent / "parts"
    folder.mkdir()
    return gguf_split.split(whole, folder, COUNT)


@pytest.fixture
def parts(made: list[Path], tmp_path: Path) -> list[Path]:
    """Somebody's, on the node."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    return [Path(shutil.copy(part, folder)) for part in made]


def digest(parts: list[Path]) -> str:
    return digest_of_parts(sha256_of(part) for part in parts)


def owned(layout: Layout, parts: list[Path]) -> str:
    """The parts as a keeper puts them into the models folder; the first one's path."""
    names = parts_of(f"{digest(parts)}-00001-of-{len(parts):05}.gguf")
    for part, name in zip(parts, names, strict=True):
        shutil.copy(part, layout.models / name)
    return str(layout.models / names[0])


async def test_what_a_keeper_put_there_is_one_model_until_it_is_removed(
    layout: Layout, parts: list[Path], whole: Path
) -> None:
    catalog = Catalog(layout.models)
    request = RegisterRequest("hf:o/r:Q8_0", owned(layout, parts), sha256=digest(parts))
    info = await register(catalog, request)
    assert (info.parts, info.owned, info.sha256) == (COUNT, True, digest(parts))
    assert info.size == sum(part.stat().st_size for part in parts)
    assert (await register(catalog, RegisterRequest(f"file:{whole}", str(whole)))).meta == info.meta
    assert catalog.find(info.model) == info
    catalog.remove(info.model)
    assert list(layout.models.glob("*-of-*.gguf")) == []


async def test_a_part_with_another_content_is_refused(layout: Layout, parts: list[Path]) -> None:
    path, right = owned(layout, parts), digest(parts)
    second = Path(path).with_name(parts_of(Path(path).name)[1])
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    with pytest.raises(RemoteError) as failure:
        await register(Catalog(layout.models), RegisterRequest("m", path, sha256=right))
    assert failure.value.code is ErrorCode.DOWNLOAD_FAILED


async def test_somebody_elses_parts_are_named_by_any_and_get_a_checksum(layout: Layout, parts: list[Path]) -> None:
    async with supervising(layout) as supervisor:
        catalog = Catalog(layout.models)
        info = await register(catalog, RegisterRequest(f"file:{parts[0]}", str(parts[1])))
        assert (info.path, info.parts, info.owned) == (str(parts[0]), COUNT, False)
        digests = Digests(catalog, supervisor)
        await digests.look()
        await digests.look()
        assert catalog.find(info.model).sha256 == digest(parts)
        parts[2].write_bytes(parts[2].read_bytes() + b" ")
        assert catalog.find(info.model).sha256 == ""
        parts[1].unlink()
        assert [left for left in catalog.list() if not left.owned] == []
    assert parts[0].exists()


async def test_a_missing_part_is_named(layout: Layout, parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(RemoteError) as failure:
        await register(Catalog(layout.models), RegisterRequest(f"file:{parts[0]}", str(parts[0])))
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND
    assert f"{parts[1].name} is not in {parts[1].parent}" in failure.value.message


async def test_what_a_download_left_is_taken_in_under_the_models_digest(layout: Layout, parts: list[Path]) -> None:
    catalog = Catalog(layout.models)
    names = parts_of(catalog.incoming("m").name.replace(".gguf", f"-00001-of-{COUNT:05}.gguf"))
    for part, name in zip(parts, names, strict=True):
        shutil.copy(part, layout.models / name)
    leftovers = [found.kind for found in files.scan(str(layout.home), str(layout.run_dir))]
    assert leftovers.count("download") == COUNT
    info = await register(catalog, RegisterRequest("m", names[0]))
    assert Path(info.path).name == f"{digest(parts)}-00001-of-{COUNT:05}.gguf"
    assert [found for found in files.scan(str(layout.home), str(layout.run_dir)) if found.kind == "download"] == []


def test_a_measure_counts_for_the_parts_that_it_was_made_of(parts: list[Path]) -> None:
    before = subject_of(str(parts[0]), WorkerOptions())
    assert before.size == sum(part.stat().st_size for part in parts)
    parts[2].write_bytes(parts[2].read_bytes() + b" ")
    assert subject_of(str(parts[0]), WorkerOptions()) != before


def test_the_digest_of_parts_is_that_of_their_digests(parts: list[Path]) -> None:
    assert file_digest.digest_of(parts[0]).sha256 == digest(parts)
