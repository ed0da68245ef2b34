"""An index of prebuilt wheels: what it may give is said by hashes, or by each node that takes whatever it gives."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rbee.base.errors import ConfigError, NodeError
from rbee.base.events import Event, Notice
from rbee.inventory import Node
from rbee.setup import building, requirements
from rbee.setup.builders import KEEPER, Builders
from rbee.setup.platforms import Target
from rbee.setup.wheel_index import WheelIndex
from rbee.setup.wheels import WheelCache
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_source, write_wheel

HERE = Target.here()
TAG = f"py3-none-linux_{HERE.machine}"
GPU1 = Node("gpu1", host="192.0.2.1", host_key="SHA256:one")


class Prebuilt:
    """An index with one wheel, which holds a real library. sha256: of that wheel."""

    def __init__(self, root: Path) -> None:
        folder = root / "prebuilt/cpu/llama-cpp-python"
        library = next(Path(psutil.__file__).parent.rglob("*.so")).read_bytes()
        files = {"llama_cpp/__init__.py": b"", "llama_cpp/lib/libggml.so": library}
        self.wheel = write_wheel(folder, "llama_cpp_python", files, tag=TAG)
        (folder / "index.html").write_text(f'<a href="{self.wheel.name}">{self.wheel.name}</a>')
        self.url = (root / "prebuilt").as_uri()
        self.sha256 = hashlib.sha256(self.wheel.read_bytes()).hexdigest()


@pytest.fixture
def prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prebuilt:
    index = PackageIndex(tmp_path, monkeypatch)
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python"))
    monkeypatch.setenv("PATH", "/nowhere")  # no compiler: whatever is found comes from the index
    monkeypatch.delenv("CXX", raising=False)
    prebuilt = Prebuilt(tmp_path)
    monkeypatch.setenv("RBEE_WHEEL_INDEX", prebuilt.url)
    return prebuilt


def named_by(node: Node, url: str) -> Builders:
    return Builders.of(replace(node, builds_from=(url,)), {node.name: node})


async def test_without_a_hash_its_wheels_are_for_nodes_that_name_it(cache: WheelCache, prebuilt: Prebuilt) -> None:
    builders = named_by(GPU1, f"{prebuilt.url}/")
    assert cache.can_get(HERE, "cpu", builders)
    found = await cache.llama_wheel(HERE, "cpu", lambda _: None, builders=builders)
    assert found == cache.find_llama(HERE, "cpu", builders)
    for other in (
        KEEPER,
        Builders.of(GPU1, {}),
        named_by(Node("local"), prebuilt.url),
        named_by(GPU1, "https://x.example"),
    ):
        assert cache.find_llama(HERE, "cpu", other) is None
        assert not cache.can_get(HERE, "cpu", other)


@pytest.mark.parametrize("name", ["gpu1", "local"])
async def test_a_node_that_does_not_name_it_is_told_how(cache: WheelCache, prebuilt: Prebuilt, name: str) -> None:
    events: list[Event] = []
    node = Node(name)
    builders = Builders.of(node, {name: node})
    with pytest.raises(NodeError):
        await cache.llama_wheel(HERE, "cpu", events.append, builders=builders)
    assert [event for event in events if isinstance(event, Notice) and f"{prebuilt.url} is not used" in event.text]
    assert not list(cache.root.glob("llama/*"))
    alpine = replace(HERE, libc="musl", libc_version=(1, 2))
    assert (
        f'builds_from = ["{prebuilt.url}"]' in building.no_way(alpine, "cpu", cache.built_elsewhere(HERE, "cpu")).hint
    )


async def test_with_its_hash_a_wheel_is_for_every_machine(
    cache: WheelCache, prebuilt: Prebuilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBEE_WHEEL_INDEX", f"{prebuilt.url}#sha256={'0' * 64},sha256={prebuilt.sha256}")
    assert cache.can_get(HERE, "cpu")
    assert await cache.llama_wheel(HERE, "cpu", lambda _: None) == cache.find_llama(HERE, "cpu", KEEPER)


async def test_a_wheel_with_another_hash_is_refused(
    cache: WheelCache, prebuilt: Prebuilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBEE_WHEEL_INDEX", f"{prebuilt.url}#sha256={'0' * 64}")
    with pytest.raises(NodeError, match="could not download"):
        await cache.llama_wheel(HERE, "cpu", lambda _: None)
    assert not list(cache.root.glob("llama/*"))


async def test_no_other_index_can_take_its_place(
    cache: WheelCache, prebuilt: Prebuilt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own indexes may be asked for anything else; what is kept under an index's name comes from there."""
    prebuilt.wheel.unlink()
    write_wheel(tmp_path / "index", "llama_cpp_python", {"llama_cpp/__init__.py": b"evil"}, tag=TAG)
    other = Prebuilt(tmp_path / "other")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{other.url}/cpu")
    with pytest.raises(NodeError, match="could not download"):
        await cache.llama_wheel(HERE, "cpu", lambda _: None, builders=named_by(GPU1, prebuilt.url))
    assert not list(cache.root.glob("llama/*"))


@pytest.mark.parametrize(
    ("text", "url", "hashes", "name"),
    [
        ("https://w.example/llama/", "https://w.example/llama", 0, "https://w.example/llama"),
        ("https://me:secret@w.example/llama", "https://me:secret@w.example/llama", 0, "https://w.example/llama"),
        (f"https://w.example#sha256={'a' * 64}", "https://w.example", 1, ""),
    ],
)
def test_how_it_is_written(text: str, url: str, hashes: int, name: str) -> None:
    index = WheelIndex.of({"RBEE_WHEEL_INDEX": text})
    assert index
    assert (index.url, len(index.hashes), index.name) == (url, hashes, name)


@pytest.mark.parametrize("wrong", ["md5=12", "sha256=12", f"sha256={'g' * 64}", f"sha256={'a' * 64};x"])
def test_a_hash_that_is_none_is_an_error_and_not_no_hash(wrong: str) -> None:
    with pytest.raises(ConfigError, match="is not a hash"):
        WheelIndex.of({"RBEE_WHEEL_INDEX": f"https://w.example#{wrong}"})


def test_no_index_is_none() -> None:
    assert WheelIndex.of({}) is None
    assert WheelIndex.of({"RBEE_WHEEL_INDEX": ""}) is None
