"""What is left over in the keeper's own home: found by its name, removed if it still is what it was."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from rbee.base.locks import held_at_once
from rbee.base.settings import Settings
from rbee.cleanup import keeper_home
from rbee_remote.protocol.sweep import FileSeen

#: Below the keeper's home, with the kind that each is taken for.
LEFTOVERS = {
    "cache/models/.staging-0123456789ab": "staging",
    "cache/models/incoming-00.gguf.part": "download",
    "cache/models/incoming-00.gguf.part.json": "download",
    "cache/models/incoming-00.gguf": "download",
    "cache/payloads/0123456789abcdef.zip": "payload",
    "cache/payloads/.0123456789abcdef.zip.00aa11bb": "draft",
    "cache/wheels/.staging-0123456789ab": "staging",
    "cache/wheels/llama/.adding-0123456789ab": "staging",
    "keeper-id.00aa11bb": "draft",
    "workers.db.00aa11bb": "draft",
    "workers.db.00aa11bb-wal": "draft",
    "workers.db.corrupt-20260101T000000.000000Z": "registry",
    "usage.db.corrupt-20260101T000000.000000Z": "registry",
    "keys.toml.00aa11bb": "draft",
    "log/answer-20260101-000000-00aa11bb.txt": "answer",
}
KEPT = (
    "keeper-id",
    "workers.db",
    "workers.db-wal",
    "inventory.toml",
    "keys.toml",
    ".keys.toml.lock",
    "usage.db",
    "log/gateway.log",
    "log/gateway.log.1",
    f"cache/models/{'0' * 64}.gguf",
    "cache/models/0123456789abcdef0123456789abcdef.json",
    "cache/models/abc.lock",
    "cache/locks/bootstrap-gpu1.lock",
    "cache/wheels/base-0123456789abcdef/some.whl",
    "cache/wheels/build.lock",
    "log/rbee.log",
    "log/audit.log",
    "log/audit.head",
    "log/notes.txt",
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("RBEE_WHEEL_CACHE", raising=False)
    return Settings(tmp_path)


def put(settings: Settings, name: str) -> Path:
    """A leftover of that name: a folder with a file in it, or a file."""
    path = settings.home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if LEFTOVERS.get(name) == "staging":
        path.mkdir()
        path /= "inside"
    path.write_bytes(b"x" * 1000)
    return settings.home / name


def found(settings: Settings) -> FileSeen:
    (only,) = keeper_home.look(settings)
    return only


def test_looking_at_a_home_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert keeper_home.look(Settings(tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()


def test_each_leftover_is_found_and_removed_and_nothing_else(settings: Settings) -> None:
    for name in (*LEFTOVERS, *KEPT):
        put(settings, name)
    files = {file.path.removeprefix(f"{settings.home}/"): file for file in keeper_home.look(settings)}
    assert {name: file.kind for name, file in files.items()} == LEFTOVERS
    assert all(file.bytes >= 1000 and file.idle_s < 60 for file in files.values())
    assert [keeper_home.remove(file) for file in files.values()] == [""] * len(files)
    assert keeper_home.look(settings) == []
    assert [name for name in KEPT if not (settings.home / name).exists()] == []


def test_a_folder_is_as_young_as_the_youngest_in_it(settings: Settings) -> None:
    folder = put(settings, "cache/models/.staging-0123456789ab")
    long_ago = time.time() - 1e6
    os.utime(folder, (long_ago, long_ago))
    assert found(settings).idle_s < 60
    os.utime(folder / "inside", (long_ago, long_ago))
    os.utime(folder, (long_ago, long_ago))
    assert found(settings).idle_s > 9e5


def test_what_was_written_to_since_is_left_alone(settings: Settings) -> None:
    path = put(settings, "cache/models/incoming-00.gguf.part")
    file = found(settings)
    os.utime(path, (1, 1))
    assert keeper_home.remove(file) == "it has changed meanwhile"
    path.unlink()
    assert keeper_home.remove(file) == "it is gone already"


@pytest.mark.parametrize(
    "lock", ["cache/wheels/build.lock", "cache/locks/bootstrap-gpu1.lock", "cache/models/abc.lock"]
)
def test_a_lock_that_somebody_is_about_to_take_has_one_holder_after_a_clean_up(settings: Settings, lock: str) -> None:
    path = put(settings, lock)
    os.utime(path, (1, 1))
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert [keeper_home.remove(file) for file in keeper_home.look(settings)] == []
        with held_at_once(path) as is_held:
            assert is_held
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_a_cache_outside_the_home_is_not_looked_at(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Settings(tmp_path_factory.mktemp("shared"))
    for name in LEFTOVERS:
        put(shared, name)
    before = sorted(shared.home.rglob("*"))
    monkeypatch.setenv("RBEE_WHEEL_CACHE", str(shared.cache / "wheels"))
    settings.cache.mkdir(parents=True)
    for name in ("wheels", "models", "payloads"):
        (settings.cache / name).symlink_to(shared.cache / name)
    (settings.home / "log").symlink_to(shared.log)
    assert keeper_home.look(settings) == []
    assert sorted(shared.home.rglob("*")) == before


def test_a_home_that_a_link_leads_to_is_cleaned_up(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    put(settings, "cache/models/incoming-00.gguf.part")
    home = tmp_path_factory.mktemp("links") / "home"
    home.symlink_to(settings.home)
    assert keeper_home.remove(found(Settings(home))) == ""


def test_a_link_is_removed_and_not_what_it_leads_to(settings: Settings, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thing").write_text("mine")
    (settings.cache / "models").mkdir(parents=True)
    (settings.cache / "models" / ".staging-0123456789ab").symlink_to(precious)
    assert keeper_home.remove(found(settings)) == ""
    assert (precious / "thing").read_text() == "mine"
    assert keeper_home.look(settings) == []


def test_of_two_at_once_one_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "gc.lock"
    with held_at_once(path) as first, held_at_once(path) as second:
        assert (first, second) == (True, False)
    with held_at_once(path) as third:
        assert third
