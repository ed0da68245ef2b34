"""What goes from the wheel cache, and what stays: locks, age, and who is at work there decide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.base.locks import held_at_once
from rbee.setup.base import requirements
from rbee.setup.wheels import prune as cache_prune
from rbee.setup.wheels.cache import BUILD_LOCK, WheelCache
from rbee.setup.wheels.prune import LEFT_ALONE_S, Judged, judge, remove
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_wheel
from tests.unit.setup.wheels.test_cached import TAG


def folder(cache: WheelCache, name: str, *, age_s: float = 0.0) -> Path:
    made = cache.root / name
    made.mkdir(parents=True)
    (made / "piece").write_bytes(bytes(5000))
    for path in (made / "piece", made):
        now = path.stat().st_mtime
        os.utime(path, (now - age_s, now - age_s))
    return made


def only(cache: WheelCache) -> Judged:
    (judged,) = judge(cache.root)
    return judged


def test_what_the_locks_name_stays_and_another_version_goes(index: PackageIndex, cache: WheelCache) -> None:
    wheels = [
        write_wheel(index.folder, "llama_cpp_python", {"llama_cpp.py": b""}, version=version, tag=TAG)
        for version in ("1.0", "2.0")
    ]
    old, kept = (cache.add_wheel(wheel, "cpu").path.parent for wheel in wheels)
    index.lock(requirements.LLAMA, wheels[1])
    index.lock(requirements.BASE)
    unnamed = folder(cache, "base-0123456789abcdef")
    found = judge(cache.root)
    assert {each.item.path: each.goes for each in found} == {old: True, unnamed: True}
    assert [remove(each).failure for each in found] == ["", ""]
    assert kept.is_dir()
    assert sorted(path.name for path in cache.root.rglob("*") if path.is_dir()) == sorted(["llama", kept.name])


@pytest.mark.parametrize("name", [".staging-12ab", "llama/.adding-12ab"])
def test_what_is_half_made_goes_when_nobody_has_touched_it_for_long(cache: WheelCache, name: str) -> None:
    made = folder(cache, name)
    assert (only(cache).goes, only(cache).why) == (False, "it was written to in the last 2h")
    for path in (made / "piece", made):
        os.utime(path, (0, path.stat().st_mtime - LEFT_ALONE_S - 1))
    assert remove(only(cache)).failure == ""
    assert not made.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
@pytest.mark.parametrize("how", ["cwd", "file"])
def test_what_a_process_works_in_stays(cache: WheelCache, how: str) -> None:
    made = folder(cache, ".staging-12ab", age_s=10 * LEFT_ALONE_S)
    words = ["sh", "-c", "read line" if how == "cwd" else 'exec 3<"$1/piece"; read line', "sh", str(made)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=made if how == "cwd" else "/") as process:
        while not any(place.is_relative_to(made) for pid, place in cache_prune._busy_places() if pid == process.pid):
            assert process.poll() is None
        assert (only(cache).goes, only(cache).why) == (False, f"process {process.pid} uses it")
        process.communicate(b"\n")
    assert only(cache).goes


def test_what_is_damaged_goes_and_what_others_may_have_written_stays(cache: WheelCache) -> None:
    damaged, doubted = folder(cache, "llama/cpu-1"), folder(cache, "llama/cpu-2")
    for made in (damaged, doubted):
        (made / "wheel.json").write_text("{")
    (doubted / "wheel.json").chmod(0o666)
    found = {each.item.path: each.goes for each in judge(cache.root)}
    assert found == {damaged: True, doubted: False}


def test_a_link_stays(cache: WheelCache, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    cache.root.mkdir()
    (cache.root / "base-0123456789abcdef").symlink_to(tmp_path / "mine")
    assert (only(cache).goes, only(cache).why) == (False, "it belongs to somebody else")


def test_what_cannot_be_removed_is_told_with_the_reason(cache: WheelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(cache, "base-0123456789abcdef")

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", fail)
    assert remove(only(cache)).failure == "Permission denied"
    assert only(cache).goes


def test_what_is_half_removed_is_half_made(cache: WheelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(cache, "base-0123456789abcdef")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.rmtree", fail)
    assert remove(only(cache)).failure == "Input/output error"
    assert only(cache).item.path.name.startswith(".staging-")


def test_nobody_begins_to_build_meanwhile(cache: WheelCache) -> None:
    with cache_prune.while_nobody_builds(cache.root) as free, held_at_once(cache.root / BUILD_LOCK) as again:
        assert (free, again) == (True, False)
