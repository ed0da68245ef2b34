"""The checksums of somebody else's files: read by the real command, and never told of a file that has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from rbee_remote.hive.digests import Digests
from rbee_remote.hive.models import file_digest
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.models.registration import register
from rbee_remote.hive.supervisor import Supervisor
from rbee_remote.protocol import ErrorCode, ModelInfo, RegisterRequest, RemoteError, StopRequest
from rbee_remote.system.hashing import sha256_of
from rbee_remote.system.layout import Layout
from tests.unit.remote.hive.conftest import make_gguf
from tests.unit.remote.hive.test_supervisor import layout as layout
from tests.unit.remote.hive.test_supervisor import serving, spawn, supervising


@pytest.fixture
def file(tmp_path: Path, tiny_gguf: Path) -> Path:
    """Somebody's model, outside of the models folder."""
    return Path(shutil.copy(tiny_gguf, tmp_path / "theirs.gguf"))


async def registered(layout: Layout, file: Path) -> tuple[Catalog, str]:
    catalog = Catalog(layout.models)
    info = await register(catalog, RegisterRequest(f"file:{file}", str(file)))
    assert (info.owned, info.sha256) == (False, "")
    return catalog, info.model


async def read(catalog: Catalog, supervisor: Supervisor) -> Digests:
    """Once seen, and found as it was."""
    digests = Digests(catalog, supervisor)
    await digests.look()
    await digests.look()
    return digests


async def test_a_file_that_is_left_alone_gets_its_checksum_and_keeps_it(layout: Layout, file: Path) -> None:
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        digests = Digests(catalog, supervisor)
        await digests.look()
        assert catalog.find(model).sha256 == ""
        changes = catalog.changed.count
        await digests.look()
        assert catalog.changed.count > changes
        assert Catalog(layout.models).find(model).sha256 == sha256_of(file)


async def test_the_same_file_of_two_nodes_is_known_as_the_same(tmp_path: Path, layout: Layout, file: Path) -> None:
    other = Layout(home=tmp_path / "other", run_dir=layout.run_dir)
    other.prepare()
    found = []
    async with supervising(layout) as supervisor:
        for each in (layout, other):
            catalog, model = await registered(each, file)
            await read(catalog, supervisor)
            found.append(catalog.find(model).sha256)
    assert found == [sha256_of(file)] * 2


@pytest.mark.parametrize("keeps_time", [False, True], ids=["written", "written, and its time set back"])
async def test_a_changed_file_has_no_checksum_until_it_is_read_again(
    layout: Layout, file: Path, *, keeps_time: bool
) -> None:
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        digests = await read(catalog, supervisor)
        old, seen = catalog.find(model), file.stat()
        content = bytearray(file.read_bytes())
        content[-1] ^= 1  # of a weight
        file.write_bytes(content)
        if keeps_time:
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        assert catalog.find(model).sha256 == ""
        changes = catalog.changed.count
        await digests.look()
        assert catalog.changed.count > changes  # who follows is told that the old one counts for nothing
        assert catalog.find(model).sha256 == ""
        await digests.look()
        assert catalog.find(model).sha256 == sha256_of(file) != old.sha256


async def test_a_file_that_was_replaced_is_known_for_what_it_is_now(layout: Layout, file: Path) -> None:
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        make_gguf(file.with_name("next.gguf"), block_count=3).replace(file)
        await read(catalog, supervisor)
        now = catalog.find(model)
        assert (now.sha256, now.size, now.meta.n_layers) == (sha256_of(file), file.stat().st_size, 3)


async def test_a_worker_is_told_with_the_file_that_it_has_loaded(layout: Layout, file: Path) -> None:
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        early = await serving(supervisor, spawn(model))
        assert early.info().sha256 == ""
        digests = await read(catalog, supervisor)
        assert early.info().sha256 == sha256_of(file)
        file.write_bytes(file.read_bytes() + b" ")
        await digests.look()
        assert early.info().sha256 == ""
        await digests.look()
        assert catalog.find(model).sha256 == sha256_of(file)
        assert early.info().sha256 == ""  # what it has loaded is not there any more


async def test_a_file_that_was_touched_is_the_one_that_a_worker_has_loaded(layout: Layout, file: Path) -> None:
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        digests = await read(catalog, supervisor)
        worker = await serving(supervisor, spawn(model))
        os.utime(file)
        await digests.look()
        assert worker.info().sha256 == ""
        await digests.look()
        assert worker.info().sha256 == sha256_of(file)


async def test_a_worker_of_a_known_file_is_told_with_it_at_once(layout: Layout, file: Path) -> None:
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        await read(catalog, supervisor)
        worker = await serving(supervisor, spawn(model))
        assert worker.info().sha256 == sha256_of(file)


async def test_a_file_that_cannot_be_read_is_tried_again_when_it_is_another(
    layout: Layout, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = file.read_bytes()
    async with supervising(layout) as supervisor:
        catalog, model = await registered(layout, file)
        file.write_bytes(whole[:100])
        digests = await read(catalog, supervisor)
        await digests.look()
        assert [record.getMessage()[:30] for record in caplog.records].count("there is no SHA-256 of file:/t") == 1
        file.write_bytes(whole)
        await digests.look()
        await digests.look()
        assert catalog.find(model).sha256 == sha256_of(file)


async def test_what_rbee_owns_is_left_alone(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        catalog = Catalog(layout.models)
        before: list[ModelInfo] = catalog.list()
        await read(catalog, supervisor)
        assert catalog.list() == before


def test_a_file_that_is_written_to_meanwhile_has_no_checksum(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_write(path: Path) -> str:
        path.write_bytes(path.read_bytes() + b" ")
        return "0" * 64

    monkeypatch.setattr(file_digest, "sha256_of", read_and_write)
    with pytest.raises(RemoteError) as failure:
        file_digest.digest_of(file)
    assert failure.value.code is ErrorCode.MODEL_INVALID


async def test_a_file_in_whose_place_another_came_stays_until_its_worker_has_ended(layout: Layout, file: Path) -> None:
    async with supervising(layout) as supervisor:
        catalog = Catalog(layout.models)
        worker = await serving(supervisor, spawn("one"))
        before = catalog.find("one")
        another = Path(shutil.copy(file, layout.models / "another.gguf"))
        another.write_bytes(another.read_bytes() + b" ")
        after = await register(catalog, RegisterRequest("one", str(another)))
        assert after.path != before.path
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Digests(catalog, supervisor).run)
            await anyio.lowlevel.checkpoint()
            assert Path(before.path).exists()
            await supervisor.stop(worker, StopRequest())
            tasks.cancel_scope.cancel()
        assert not Path(before.path).exists()
        assert Path(after.path).exists()
