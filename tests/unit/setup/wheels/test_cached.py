"""What the wheel cache has: told by name, with what cannot be read beside what can."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import cached
from rbee.setup.wheels.cache import WheelCache
from rbee.setup.wheels.cached import Kind, State, contents
from rbee.setup.wheels.llama_wheel import LlamaWheel
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_wheel

HERE = Target.here()
TAG = f"py3-none-linux_{HERE.machine}"


def ignore(_: object) -> None:
    """Progress."""


@pytest.fixture
def llama(index: PackageIndex, cache: WheelCache) -> Path:
    """The folder of one wheel that the lock names."""
    wheel = write_wheel(index.folder, "llama_cpp_python", {"llama_cpp.py": b""}, tag=TAG)
    index.lock(requirements.LLAMA, wheel)
    return cache.add_wheel(wheel, "cpu").path.parent


def only(cache: WheelCache) -> cached.Cached:
    (item,) = contents(cache.root)
    return item


def test_no_cache_is_an_empty_one(cache: WheelCache) -> None:
    assert contents(cache.root) == []


def test_a_wheel_with_what_it_needs_and_when_it_was_last_read(cache: WheelCache, llama: Path) -> None:
    (wheel,) = llama.glob("*.whl")
    os.utime(wheel, (1.8e9, wheel.stat().st_mtime))
    item = only(cache)
    assert (item.kind, item.state, item.version) == (Kind.LLAMA, State.GOOD, "1.0")
    assert item.target == Target("Linux", HERE.machine, HERE.libc, (), ())
    assert item.last_used in (1.8e9, None)  # None on a disk that does not keep it
    assert item.size >= wheel.stat().st_size
    assert item.fits(HERE, "cpu")
    assert not item.fits(HERE, "cuda")


async def test_folders_of_a_lock_are_told_by_their_names(index: PackageIndex, cache: WheelCache) -> None:
    tag = "cp312-cp312-musllinux_1_2_aarch64"
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b""}, tag=tag))
    node = Target("Linux", "aarch64", "musl", (1, 2), (3, 12))
    await cache.base_wheels(node, ignore)
    await cache.tool_wheels(HERE, ignore)
    packages, tools = contents(cache.root)
    assert (packages.kind, packages.target) == (Kind.BASE, node)
    assert (tools.kind, tools.target) == (Kind.BUILD, HERE)
    assert packages.fits(node, "cuda")
    assert not packages.fits(replace(node, python=(3, 13)), "cuda")
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b"2"}, version="2.0", tag=tag))
    packages, tools = contents(cache.root)
    assert (packages.state, packages.why) == (State.OLD, "no lock of this rbee names it")
    assert tools.state is State.GOOD


def test_the_folders_of_the_real_locks_are_told_too(tmp_path: Path) -> None:
    """By the tags of what lies there, or else among all."""
    targets = [
        Target("Linux", "x86_64", "glibc", (2, 36), (3, 11)),
        Target("Linux", "aarch64", "musl", (1, 2), (3, 13)),
        Target("Darwin", "aarch64", "macos", (14, 0), (3, 12)),
    ]
    for target in targets:
        for kind in (Kind.BASE, Kind.UV):
            folder = tmp_path / cached._name_of(kind, target)
            folder.mkdir()
            if kind is Kind.UV:
                (folder / "uv").touch()
            else:
                python = "".join(map(str, target.python))
                (folder / f"numpy-1-cp{python}-cp{python}-{target.wheel_platforms()[0]}.whl").touch()
    found = {(item.kind, item.target) for item in contents(tmp_path)}
    assert found == {(kind, target) for kind in (Kind.BASE, Kind.UV) for target in targets}


def test_another_version_is_old(index: PackageIndex, cache: WheelCache, llama: Path) -> None:
    index.lock(requirements.LLAMA, write_wheel(index.folder, "llama_cpp_python", {}, version="2.0", tag=TAG))
    item = only(cache)
    assert (item.path, item.state, item.why) == (llama, State.OLD, "this rbee uses 2.0")
    assert not item.fits(HERE, "cpu")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 10**5,
        b'{"libc_version": [Infinity]}',
        b'{"file": 1}',
        b"\xff\xfe",
        json.dumps({"libc_version": [1]}).encode(),
        b"{}",
    ],
)
def test_what_cannot_be_read_is_told_and_the_others_are_listed(cache: WheelCache, llama: Path, content: bytes) -> None:
    damaged = llama.with_name("cuda-1")
    damaged.mkdir()
    (damaged / "wheel.json").write_bytes(content)
    states = {item.path: (item.state, item.why) for item in contents(cache.root)}
    assert states == {llama: (State.GOOD, ""), damaged: (State.DAMAGED, "its wheel.json cannot be read")}
    with pytest.raises(ConfigError, match="is damaged"):
        LlamaWheel.read(damaged / "wheel.json")


def test_what_a_later_rbee_writes_besides_is_passed_over(llama: Path) -> None:
    described = llama / "wheel.json"
    before = LlamaWheel.read(described)
    described.write_text(json.dumps({**json.loads(described.read_text()), "more": 1}))
    assert LlamaWheel.read(described) == before


@pytest.mark.parametrize("file", ["gone.whl", "../wheel.json", "/etc/passwd"])
def test_a_wheel_that_is_not_there_or_elsewhere_is_damaged(cache: WheelCache, llama: Path, file: str) -> None:
    described = llama / "wheel.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "file": file}))
    assert (only(cache).state, only(cache).why) == (State.DAMAGED, "its wheel is gone")


def test_what_others_can_write_is_not_believed(cache: WheelCache, llama: Path) -> None:
    (llama / "wheel.json").chmod(0o666)
    item = only(cache)
    assert item.state is State.DOUBTED
    assert "can be written by everybody" in item.why


def test_a_folder_without_a_description_and_what_is_being_made(cache: WheelCache) -> None:
    for name in ("llama/cpu-1", "llama/.adding-12ab", ".staging-12ab", "somebody's"):
        (cache.root / name).mkdir(parents=True)
    found = {item.path.name: (item.state, item.why) for item in contents(cache.root)}
    assert found == {
        "cpu-1": (State.DAMAGED, "it has no wheel.json"),
        ".adding-12ab": (State.HALF_MADE, ""),
        ".staging-12ab": (State.HALF_MADE, ""),
    }
