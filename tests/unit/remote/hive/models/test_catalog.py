from __future__ import annotations

import errno
import json
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.hive.models.catalog import Catalog, check_ref
from rbee_remote.protocol import ErrorCode, ModelInfo, ModelMeta, RemoteError

META = ModelMeta("llama", 2, 2048, 64, 256, 2, 16, 16)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def info(model: str, path: Path, *, owned: bool = True) -> ModelInfo:
    path.write_bytes(b"GGUF")
    return ModelInfo(model, str(path), 4, "0" * 64, owned, "", 1.0, META)


def test_what_was_added_is_found_by_another_catalog(models: Path) -> None:
    entry = info("smollm2:135m", models / "a.gguf")
    Catalog(models).add(entry)
    assert Catalog(models).find("smollm2:135m") == entry
    assert Catalog(models).list() == [entry]


def test_the_home_can_move(models: Path) -> None:
    Catalog(models).add(info("m", models / "a.gguf"))
    moved = models.rename(models.with_name("elsewhere"))
    assert Catalog(moved).find("m").path == str(moved / "a.gguf")


def test_a_record_whose_file_is_gone_is_dropped(models: Path) -> None:
    catalog = Catalog(models)
    catalog.add(info("m", models / "a.gguf"))
    (models / "a.gguf").unlink()
    assert catalog.list() == []
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe", b"null"])
def test_a_damaged_record_is_dropped_and_the_others_stay(models: Path, content: bytes) -> None:
    catalog = Catalog(models)
    catalog.add(info("m", models / "a.gguf"))
    (models / f"{'d' * 32}.json").write_bytes(content)
    assert [entry.model for entry in catalog.list()] == ["m"]


def test_a_record_cannot_name_an_owned_file_outside(models: Path) -> None:
    catalog = Catalog(models)
    catalog.add(info("m", models / "a.gguf"))
    (record,) = models.glob("*.json")
    outside = models.parent / "precious"
    outside.write_text("stays")
    record.write_text(json.dumps({**json.loads(record.read_text()), "path": "../precious"}))
    with pytest.raises(RemoteError) as failure:
        catalog.remove("m")
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND
    assert outside.read_text() == "stays"


def test_a_file_in_whose_place_another_came_goes_when_nobody_has_it(models: Path) -> None:
    catalog = Catalog(models)
    before = info("one", models / "a.gguf")
    catalog.add(before)
    catalog.add(replace(before, model="two"))
    catalog.add(info("one", models / "b.gguf"))
    catalog.discard_replaced(lambda path: path == before.path)
    assert (models / "a.gguf").exists()
    catalog.discard_replaced(lambda _: False)
    assert (models / "a.gguf").exists(), "another record needs it"
    catalog.add(info("two", models / "b.gguf"))
    catalog.discard_replaced(lambda path: path == before.path)
    assert (models / "a.gguf").exists()
    catalog.discard_replaced(lambda _: False)
    assert sorted(path.name for path in models.glob("*.gguf")) == ["b.gguf"]


def killed_and_started(models: Path) -> Catalog:
    return Catalog(models)


def test_a_hive_that_is_killed_before_it_deletes_what_was_replaced_leaves_a_note_for_the_next(models: Path) -> None:
    catalog = Catalog(models)
    before = info("one", models / "a.gguf")
    catalog.add(before)
    catalog.add(info("one", models / "b.gguf"))
    catalog.discard_replaced(lambda path: path == before.path)
    catalog = killed_and_started(models)
    catalog.discard_replaced(lambda path: path == before.path)
    assert (models / "a.gguf").exists(), "a worker has it still"
    catalog = killed_and_started(models)
    catalog.discard_replaced(lambda _: False)
    assert sorted(path.suffix for path in models.iterdir()) == [".gguf", ".json"]
    assert catalog.find("one").path == str(models / "b.gguf")


def test_a_note_about_a_file_that_a_record_needs_is_forgotten(models: Path) -> None:
    catalog = Catalog(models)
    catalog.add(info("one", models / "a.gguf"))
    catalog.add(info("one", models / "b.gguf"))
    catalog.add(info("one", models / "a.gguf"))  # the note of a.gguf is over
    catalog = killed_and_started(models)
    catalog.discard_replaced(lambda _: False)
    assert sorted(path.name for path in models.glob("*.gguf*")) == ["a.gguf"]


def test_what_a_hive_of_another_machine_noted_is_its_own(models: Path) -> None:
    (models / "b.gguf").write_bytes(b"GGUF")
    (models / "b.gguf.unneeded").write_text("another machine")
    killed_and_started(models).discard_replaced(lambda _: False)
    assert (models / "b.gguf").exists()


def test_a_file_that_the_disk_does_not_give_up_ends_no_hive_and_goes_later(models: Path) -> None:
    """A note makes it the next hive's too: none could start."""
    catalog = Catalog(models)
    for name in ("a", "b", "c"):
        catalog.add(info("one", models / f"{name}.gguf"))
    with pytest.MonkeyPatch.context() as patch:
        unlink = Path.unlink

        def refuse(path: Path, missing_ok: bool = False) -> None:
            if path.name == "a.gguf":
                raise OSError(errno.EROFS, "read-only")
            unlink(path, missing_ok)

        patch.setattr(Path, "unlink", refuse)
        catalog.discard_replaced(lambda _: False)
        killed_and_started(models).discard_replaced(lambda _: False)
    assert sorted(path.name for path in models.glob("*.gguf*")) == ["a.gguf", "a.gguf.unneeded", "c.gguf"]
    catalog.discard_replaced(lambda _: False)
    assert sorted(path.name for path in models.glob("*.gguf*")) == ["c.gguf"]


def test_a_note_about_what_is_no_model_deletes_nothing(models: Path) -> None:
    catalog = Catalog(models)
    catalog.add(info("one", models / "a.gguf"))
    (record,) = models.glob("*.json")
    (models / f"{record.name}.unneeded").write_text(platform.node())
    (models / "folder.gguf").mkdir()
    (models / "folder.gguf.unneeded").write_text(platform.node())
    killed_and_started(models).discard_replaced(lambda _: False)
    assert record.exists()
    assert (models / "folder.gguf").exists()


def test_a_note_that_waits_for_a_worker_stays_young(models: Path) -> None:
    catalog = Catalog(models)
    catalog.add(info("one", models / "a.gguf"))
    catalog.add(info("one", models / "b.gguf"))
    note = models / "a.gguf.unneeded"
    os.utime(note, (1000, 1000))
    catalog.touch_notes()
    assert note.stat().st_mtime > 1000
    note.unlink()
    catalog.touch_notes()


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_kill_between_renames_leaves_nothing_for_ever(models: Path, renamed: int) -> None:
    """Of a split model; the others of its files are what a download goes on with."""
    for number in (1, 2):
        (models / f"incoming-{number:05}-of-00002.gguf").write_text(str(number))
    taken = 0

    def replace_some(path: Path, target: Path) -> Path:
        nonlocal taken
        if target.suffix == ".gguf":
            if taken == renamed:
                raise KeyboardInterrupt
            taken += 1
        os.rename(path, target)  # noqa: PTH104 - what it does is replaced
        return target

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace_some)
        with suppress(KeyboardInterrupt):
            Catalog(models).take_in(models / "incoming-00001-of-00002.gguf", "f" * 64)
    assert len(list(models.glob(f"{'f' * 64}-*.gguf"))) == renamed
    catalog = killed_and_started(models)
    catalog.discard_replaced(lambda _: False)
    assert list(models.glob(f"{'f' * 64}*")) == []
    assert len(list(models.glob("incoming-*"))) == 2 - renamed


def test_removing_deletes_the_file_with_its_last_record(models: Path) -> None:
    catalog = Catalog(models)
    entry = info("one", models / "a.gguf")
    catalog.add(entry)
    catalog.add(replace(entry, model="two"))
    catalog.remove("one")
    assert (models / "a.gguf").exists()
    catalog.remove("two")
    assert list(models.iterdir()) == []


def test_removing_leaves_a_file_that_is_not_ours(models: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.gguf"
    catalog = Catalog(models)
    catalog.add(info(f"file:{theirs}", theirs, owned=False))
    catalog.remove(f"file:{theirs}")
    assert theirs.exists()
    assert catalog.list() == []


def test_a_link_that_leads_out_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.gguf").write_bytes(b"GGUF")
    (models / "link.gguf").symlink_to(tmp_path / "outside.gguf")
    with pytest.raises(RemoteError) as failure:
        Catalog(models).locate("link.gguf")
    assert failure.value.code is ErrorCode.USAGE


parts = st.sampled_from(["..", ".", "a", "b.gguf", "/", "", "//", "~", "link", "\0"]) | st.text(max_size=4)


@given(st.lists(parts, max_size=8).map("/".join))
def test_no_path_leaves_the_models_folder(path: str) -> None:
    with tempfile.TemporaryDirectory() as base:
        models = Path(base) / "models"
        models.mkdir()
        (models / "link").symlink_to("/etc")
        try:
            located = Catalog(models).locate(path)
        except RemoteError as error:
            assert error.code is ErrorCode.USAGE
        else:
            assert located.resolve().is_relative_to(models.resolve())
            assert located.resolve() != models.resolve()


@given(st.text(min_size=1))
def test_every_ref_that_is_accepted_can_be_stored_and_found(model: str) -> None:
    try:
        check_ref(model)
    except RemoteError as error:
        assert error.code is ErrorCode.USAGE
        return
    with tempfile.TemporaryDirectory() as base:
        catalog = Catalog(Path(base))
        entry = info(model, Path(base) / "a.gguf")
        catalog.add(entry)
        assert catalog.find(model) == entry


def test_notes_of_downloads_are_no_records_and_stay(models: Path) -> None:
    """Without its note an unfinished download cannot go on."""
    note = models / "incoming-0123.gguf.part.json"
    note.write_text("{}")
    assert Catalog(models).list() == []
    assert note.exists()


def test_a_name_that_is_nearly_right_gets_a_hint(models: Path) -> None:
    catalog = Catalog(models)
    catalog.add(info("hf:bees/tiny:Q4_1", models / "a.gguf"))
    with pytest.raises(RemoteError) as failure:
        catalog.remove("hf:bees/tiny:Q4_0")
    assert failure.value.hint == "did you mean hf:bees/tiny:Q4_1?"
