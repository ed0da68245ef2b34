"""What a node built is code of that node's choosing: who may run it, and what reading it may cost."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from rbee.base.errors import NodeError
from rbee.base.events import Emit
from rbee.base.files import LocalFile
from rbee.inventory import Node
from rbee.setup.base import requirements
from rbee.setup.base.node_scripts import Place
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import KEEPER, Builders
from rbee.setup.wheels import node_build, portable
from rbee.setup.wheels.building import forecast
from rbee.setup.wheels.cache import Origin, Ways, WheelCache
from rbee.setup.wheels.node_build import NodeBuilder
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_wheel

ALPINE = Target("Linux", "x86_64", "musl", (1, 2), (3, 12))
GPU1 = Node("gpu1", host="192.0.2.1", host_key="SHA256:one")
GPU2 = Node("gpu2", host="192.0.2.2", host_key="SHA256:two")
LOCAL = Node("local", builds_from=("gpu1",))
TAG = "py3-none-linux_x86_64"


def nodes(*changed: Node) -> dict[str, Node]:
    return {node.name: node for node in (GPU1, GPU2, LOCAL, *changed)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelCache:
    """One that has the wheel that gpu1 built."""
    index = PackageIndex(tmp_path, monkeypatch)
    wheel = write_wheel(tmp_path / "built", "llama_cpp_python", {"llama_cpp/__init__.py": b"gpu1's"}, tag=TAG)
    index.lock(requirements.LLAMA, wheel)
    cache = WheelCache(tmp_path / "cache", tmp_path / "log")
    cache.add_wheel(wheel, "cpu", libc="musl", origin=Origin(Builders.of(GPU1, nodes()).own))
    return cache


# --- who may run it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "inventory", "may"),
    [
        (GPU1, nodes(), True),
        (GPU2, nodes(), False),
        (replace(GPU2, builds_from=("gpu1",)), nodes(), True),
        (replace(GPU2, builds_from=("gpu1", "nobody")), nodes(), True),
        # another machine has the name now
        (replace(GPU1, host_key="SHA256:other"), nodes(), False),
        (replace(GPU2, builds_from=("gpu1",)), nodes(replace(GPU1, host_key="SHA256:other")), False),
        # this machine, even where [defaults] say so
        (LOCAL, nodes(), False),
    ],
)
def test_what_a_node_built_runs_there_and_where_the_inventory_says(
    cache: WheelCache, node: Node, inventory: dict[str, Node], may: bool
) -> None:
    builders = Builders.of(node, inventory)
    assert (cache.find_llama(ALPINE, "cpu", builders) is not None) is may
    assert cache.can_get(ALPINE, "cpu", builders) is may
    assert cache.find_llama(ALPINE, "cpu") is None


def test_who_may_not_run_it_is_told_how_that_can_be_changed(cache: WheelCache) -> None:
    from rbee.setup.wheels.building import no_way

    assert cache.built_elsewhere(ALPINE, "cpu") == "gpu1"
    assert 'builds_from = ["gpu1"]' in no_way(ALPINE, "cpu", "gpu1").hint


def test_it_stands_beside_what_this_machine_built_and_never_in_its_place(cache: WheelCache, tmp_path: Path) -> None:
    own = write_wheel(tmp_path / "own", "llama_cpp_python", {"llama_cpp/__init__.py": b"own"}, tag=TAG)
    added = cache.add_wheel(own, "cpu", libc="musl")
    builders = Builders.of(replace(GPU2, builds_from=("gpu1",)), nodes())
    for who in (KEEPER, builders):
        assert cache.find_llama(ALPINE, "cpu", who) == added, "what others built comes last"
    assert len(list((cache.root / "llama").iterdir())) == 2


# --- what reading it may cost ---------------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llama_cpp/lib/libllama.so", b"\x7fELF" + bytes(3 * 2**20))


def many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            archive.writestr(f"{number}.txt", b"")


def liar(path: Path) -> None:
    """Says of three megabytes that they are four bytes."""
    bomb(path)
    data = path.read_bytes().replace(struct.pack("<L", 3 * 2**20 + 4), struct.pack("<L", 4))
    path.write_bytes(data)


def lzma(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("llama_cpp/lib/libllama.so", bytes(1000))


def broken_elf(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llama_cpp/lib/libllama.so", b"\x7fELF" + b"\xff" * 200)


def endless_elf(path: Path) -> None:
    """A table of version needs that says it has 4 billion entries, each leading to itself."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)

    def section(name: int, kind: int, offset: int, size: int, link: int, info: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, info, 1, 0)

    names = b"\0.x\0"
    start = 64 + 3 * 64
    need = struct.pack("<HHIII", 1, 65535, 1, 16, 0) + struct.pack("<IHHII", 0, 0, 0, 1, 0)
    sections = section(0, 0, 0, 0, 0, 0)
    sections += section(1, 0x6FFFFFFE, start, 2**20, 2, 2**31) + section(1, 3, start + len(need), len(names), 0, 0)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llama_cpp/lib/libllama.so", header + sections + need + names)


def elf_of_many_sections(count: int) -> bytes:
    """All of them empty; only their number is of interest."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, count, 0)
    return header + bytes(64 * count)


def many_libraries(path: Path) -> None:
    """One takes a second; as many as a wheel may have files take hours."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(25):
            archive.writestr(f"llama_cpp/lib/libx{number}.so", elf_of_many_sections(15_000))


def many_tiny_libraries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(15):
            archive.writestr(f"llama_cpp/lib/libx{number}.so", elf_of_many_sections(1))


def no_zip(path: Path) -> None:
    path.write_bytes(b"PK" * 100)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [bomb, many, liar, lzma, broken_elf, endless_elf, no_zip, many_tiny_libraries])
def test_a_wheel_that_is_made_to_hurt_is_an_error(
    make: Callable[[Path], None], cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "LARGEST_FILE", 2**20)
    monkeypatch.setattr(portable, "MOST_FILES", 30)
    monkeypatch.setattr(portable, "MOST_LIBRARIES", 10)
    wheel = tmp_path / f"llama_cpp_python-1.0-{TAG}.whl"
    make(wheel)
    before = sorted(cache.root.rglob("*"))
    with pytest.raises(NodeError) as caught:
        cache.add_wheel(wheel, "cpu", origin=Origin("gpu1 SHA256:one"))
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert caught.value.message.startswith(f"the wheel {wheel.name} cannot be used: ")
    assert sorted(cache.root.rglob("*")) == before


@pytest.mark.parametrize("read", [portable.missing_libraries, portable.needed_glibc])
def test_all_libraries_of_a_wheel_share_one_bound(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read_headers = portable.Headers.read

    def counted(headers: portable.Headers, size: int = -1) -> bytes:
        nonlocal reads
        reads += 1
        return read_headers(headers, size)

    monkeypatch.setattr(portable, "MOST_READS", 40_000)
    monkeypatch.setattr(portable.Headers, "read", counted)
    wheel = tmp_path / f"llama_cpp_python-1.0-{TAG}.whl"
    many_libraries(wheel)
    with pytest.raises(NodeError, match="the headers of its libraries are too large"):
        read(wheel)
    assert reads == 40_000


async def test_ctrl_c_ends_the_reading_before_the_lock_is_let_go(
    cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reads uses the folder that goes; and the loop, which hears Ctrl-C, is not the one that reads."""
    reading, ended = threading.Event(), threading.Event()

    def endless(_: IO[bytes], budget: portable.Budget) -> list[str]:
        reading.set()
        try:
            while True:
                budget.stop()
                time.sleep(0.001)
        finally:
            ended.set()

    async def on_node(_flags: str, folder: Path, _emit: Emit) -> tuple[Path, portable.FindLibrary]:
        wheel = folder / f"llama_cpp_python-1.0-{TAG}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llama_cpp/lib/libllama.so", elf_of_many_sections(1))
        return wheel, lambda _: None

    monkeypatch.setattr(portable, "_needs", endless)
    work = cache.llama_wheel(
        ALPINE, "cpu", lambda _: None, ways=Ways(on_node), builders=Builders.of(replace(GPU2, host_key="k"), nodes())
    )
    before = sorted(cache.root.rglob("*"))
    task = asyncio.create_task(work)
    assert await asyncio.to_thread(reading.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    kept = {
        cache.root / "build.lock",
        *cache.root.rglob(".staging-build-*"),
        *cache.root.rglob(".staging-build-*/**/*"),
    }
    assert sorted({*cache.root.rglob("*")} - kept) == before


def test_a_wheel_of_another_name_that_is_there_already_serves(cache: WheelCache, tmp_path: Path) -> None:
    """A name says more than where a wheel runs."""
    (first,) = cache.root.rglob("*.whl")
    again = write_wheel(
        tmp_path / "again", "llama_cpp_python", {"llama_cpp/__init__.py": b"other"}, tag=f"cp311-{TAG[4:]}"
    )
    added = cache.add_wheel(again, "cpu", libc="musl", origin=Origin(Builders.of(GPU1, nodes()).own))
    assert added == LocalFile.of(first)


@pytest.mark.parametrize("name", ["../../evil.so", "libx.so\nlibc.so", "-o.so", "x" * 200 + ".so"])
def test_a_library_with_a_name_that_is_none_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / f"llama_cpp_python-1.0-{TAG}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llama_cpp/lib/libllama.so", b"\x7fELF")
    monkeypatch.setattr(portable, "_needs", lambda *_: [name])
    with pytest.raises(NodeError, match="cannot be used"):
        portable.missing_libraries(wheel)


# --- fetching -------------------------------------------------------------------------------------------------------


async def test_a_wheel_that_is_longer_than_one_answer_is_fetched_in_pieces(
    cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_build, "PIECE", 1000)
    remote = tmp_path / "a wheel"
    for size in (0, 999, 1000, 3500):
        content = bytes(number % 251 for number in range(size))
        remote.write_bytes(content)
        async with LocalConnection(keeper_id="k1") as connection:
            place = Place("/h", "/h/uv", "/py")
            builder = NodeBuilder(connection, "gpu1", place, tmp_path / "log", cache, forecast("gpu1", 2, "cpu"))
            await builder._fetch(f"'{remote}'", tmp_path / "fetched", 5000)
            assert (tmp_path / "fetched").read_bytes() == content
            if size == 3500:
                with pytest.raises(NodeError, match="larger than"):
                    await builder._fetch(f"'{remote}'", tmp_path / "fetched", 2000)
