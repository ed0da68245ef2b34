"""The wheel cache: what fits a node, fetched once by the real pip, and nothing half-done under a final name."""

from __future__ import annotations

import asyncio
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy
import psutil
import pytest

from rbee.base.errors import NodeError
from rbee.base.events import Event, Notice, Progress
from rbee.base.files import LocalFile
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import building, portable
from rbee.setup.wheels.cache import Origin, WheelCache
from rbee.setup.wheels.kept import PREFIX
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.load_options import COMPILED_BACKENDS
from tests.patience import PATIENCE_S
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import lock_line, write_source, write_wheel

HERE = Target.here()
NODE = Target("Linux", "x86_64", "glibc", (2, 36), (3, 11))
LLAMA_TAG = "py3-none-linux_x86_64"


@pytest.fixture
def events() -> list[Event]:
    return []


def in_progress(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_dir()]


def llama_wheel(folder: Path, library: bytes = b"") -> Path:
    files = {"llama_cpp/__init__.py": b"", "include/llama.h": b"x", "lib/libllama.so": b"x"}
    if library:
        files["llama_cpp/lib/libggml-base.so.0"] = library
    return write_wheel(folder, "llama_cpp_python", files, tag=LLAMA_TAG)


def extension(package: Path, pattern: str) -> bytes:
    return next(package.rglob(pattern)).read_bytes()


# --- what fits ------------------------------------------------------------------------------------------------------


def test_a_binary_runs_where_the_c_library_is_as_new() -> None:
    assert NODE.runs_what_is_built_on(replace(NODE, libc_version=(2, 34)))
    assert NODE.runs_what_is_built_on(NODE)
    for other in (
        replace(NODE, libc_version=(2, 37)),
        replace(NODE, libc="musl", libc_version=(1, 2)),
        replace(NODE, machine="aarch64"),
        replace(NODE, system="Darwin"),
    ):
        assert not NODE.runs_what_is_built_on(other)


@pytest.mark.parametrize(
    ("target", "best", "absent"),
    [
        (NODE, "manylinux_2_36_x86_64", "manylinux_2_37_x86_64"),
        (replace(NODE, machine="aarch64"), "manylinux_2_36_aarch64", "manylinux_2_16_aarch64"),
        (replace(NODE, libc="musl", libc_version=(1, 2)), "musllinux_1_2_x86_64", "manylinux_2_17_x86_64"),
        (Target("Darwin", "aarch64", "macos", (14, 5), (3, 12)), "macosx_14_0_arm64", "macosx_15_0_arm64"),
    ],
)
def test_wheel_tags_go_from_the_nodes_own_c_library_downwards(target: Target, best: str, absent: str) -> None:
    tags = target.wheel_platforms()
    assert best in tags[:2] or tags[0].startswith("macosx_14")
    assert best in tags
    assert absent not in tags


def test_the_real_lock_gives_every_python_its_own_versions_and_every_line_a_hash() -> None:
    names = {
        python: {line.name: line for line in requirements.for_target(requirements.BASE, replace(NODE, python=python))}
        for python in [(3, 10), (3, 11), (3, 13)]
    }
    assert "exceptiongroup" in names[3, 10]
    assert "exceptiongroup" not in names[3, 11]
    assert names[3, 10]["numpy"].version != names[3, 13]["numpy"].version
    for lines in names.values():
        assert {"uvicorn", "starlette", "numpy", "gguf", "jinja2"} <= set(lines)
        assert not {"colorama", "hf-xet"} & set(lines)
        assert all(line.hashes for line in lines.values())
    assert all(
        "//" not in (requirements.folder() / name).read_text()
        for name in (requirements.BASE, requirements.BUILD, requirements.LLAMA)
    )


@pytest.mark.parametrize(
    ("target", "has"),
    [
        (NODE, True),
        (replace(NODE, libc_version=(2, 31)), True),
        (replace(NODE, libc_version=(2, 28)), False),
        (replace(NODE, libc_version=()), False),
        (replace(NODE, machine="aarch64"), True),
        (replace(NODE, libc="musl", libc_version=(1, 2)), False),
        (Target("Darwin", "aarch64", "macos", (14, 5), (3, 12)), True),
    ],
)
def test_llguidance_goes_where_it_has_a_wheel_and_the_runtime_is_made_without_it_elsewhere(
    target: Target, has: bool
) -> None:
    base = {line.name for line in requirements.for_target(requirements.BASE, target)}
    names = {line.name for line in requirements.for_runtime(target)}
    assert names - base == ({"llguidance"} if has else set())
    old, upgraded = (replace(target, libc_version=version) for version in ((2, 28), (2, 36)))
    keys = {requirements.runtime_key(each, "cpu", "") for each in (old, upgraded)}
    assert len(keys) == (2 if target.libc == "glibc" else 1)


def test_the_runtime_key_changes_with_everything_that_changes_the_runtime() -> None:
    keys = {
        requirements.runtime_key(target, backend, flags)
        for target in (NODE, replace(NODE, python=(3, 12)), replace(NODE, machine="aarch64"))
        for backend in ("cpu", "cuda")
        for flags in ("-DA=ON", "-DA=OFF")
    }
    assert len(keys) == 12
    upgraded = replace(NODE, libc_version=(2, 41))
    assert requirements.runtime_key(upgraded, "cpu", "") == requirements.runtime_key(NODE, "cpu", "")


# --- fetching -------------------------------------------------------------------------------------------------------


async def test_base_wheels_are_fetched_once_and_then_need_no_index(
    index: PackageIndex, cache: WheelCache, events: list[Event]
) -> None:
    wheels = [write_wheel(index.folder, name, {f"{name}.py": b""}) for name in ("one", "two")]
    index.lock(requirements.BASE, *wheels)
    first = await cache.base_wheels(NODE, events.append)
    assert [wheel.name for wheel in first] == [wheel.name for wheel in wheels]
    assert events[-1] == Progress("base.txt", "fetching the runtime's packages", 2.0, 2.0, "steps")
    index.vanish()
    events.clear()
    assert await cache.base_wheels(NODE, events.append) == first
    assert events == []


async def test_a_wheel_that_is_not_the_locked_one_is_refused_and_leaves_nothing(
    index: PackageIndex, cache: WheelCache
) -> None:
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b"good"}))
    write_wheel(index.folder, "one", {"one.py": b"evil"})
    with pytest.raises(NodeError) as caught:
        await cache.base_wheels(NODE, lambda _: None)
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert "pip config" in caught.value.hint
    assert list(cache.root.iterdir()) == []


async def test_two_fetches_at_once_leave_one_folder(index: PackageIndex, cache: WheelCache) -> None:
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b""}))
    one, two = await asyncio.gather(*(cache.base_wheels(NODE, lambda _: None) for _ in range(2)))
    assert one == two
    assert len(list(cache.root.iterdir())) == 1


# --- the wheel of llama-cpp-python ----------------------------------------------------------------------------------


def test_a_wheel_in_the_cache_is_found_for_the_nodes_it_fits(
    index: PackageIndex, cache: WheelCache, tmp_path: Path
) -> None:
    wheel = llama_wheel(tmp_path / "built", extension(Path(psutil.__file__).parent, "*.so"))
    index.lock(requirements.LLAMA, wheel)
    needed = portable.needed_glibc(wheel)
    assert needed >= (2, 2)
    added = cache.add_wheel(wheel, "cpu")
    assert cache.find_llama(replace(NODE, libc_version=needed), "cpu") == added
    older = (needed[0], needed[1] - 1)
    for target, backend in [
        (replace(NODE, libc_version=older), "cpu"),
        (replace(NODE, machine="aarch64"), "cpu"),
        (NODE, "cuda"),
    ]:
        assert cache.find_llama(target, backend) is None
    assert in_progress(cache.root) == []


def test_what_travels_has_no_copies_and_brings_the_libraries_that_may_lack(
    index: PackageIndex, cache: WheelCache, tmp_path: Path
) -> None:
    wheel = llama_wheel(tmp_path / "built", extension(Path(numpy.__file__).parent, "_multiarray_umath*.so"))
    index.lock(requirements.LLAMA, wheel)
    missing = portable.missing_libraries(wheel)
    assert missing
    assert not any(name.startswith(("libc.", "libm.", "libstdc++")) for name in missing)
    library = tmp_path / "library"
    library.write_bytes(b"I am a library")
    added = cache.add_wheel(wheel, "cpu", origin=Origin(find_library=lambda _: library))
    with zipfile.ZipFile(added.path) as archive:
        inside = archive.namelist()
        record = archive.read("llama_cpp_python-1.0.dist-info/RECORD").decode()
    assert {f"llama_cpp/lib/{name}" for name in missing} < set(inside)
    assert not any(name.startswith(("include/", "lib/")) for name in inside)
    assert sorted(line.split(",")[0] for line in record.splitlines()) == sorted(inside)


def test_adding_a_wheel_twice_keeps_the_first(index: PackageIndex, cache: WheelCache, tmp_path: Path) -> None:
    wheel = llama_wheel(tmp_path / "built")
    index.lock(requirements.LLAMA, wheel)
    assert cache.add_wheel(wheel, "cpu") == cache.add_wheel(wheel, "cpu")
    assert len(list((cache.root / "llama").iterdir())) == 1


@pytest.mark.parametrize("spoil", ["wheel.json", "wheel", "no wheel", "no wheel.json"])
@pytest.mark.usefixtures("compiler")
async def test_what_is_damaged_is_passed_over_and_gives_way_to_what_is_whole(
    index: PackageIndex, cache: WheelCache, events: list[Event], spoil: str
) -> None:
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=LLAMA_TAG))
    built = await cache.llama_wheel(HERE, "cpu", lambda _: None)
    if spoil.startswith("no "):
        (built.path if spoil == "no wheel" else built.path.with_name("wheel.json")).unlink()
    else:
        (built.path if spoil == "wheel" else built.path.with_name("wheel.json")).write_bytes(b"PK")
    again = await cache.llama_wheel(HERE, "cpu", events.append)
    assert again.path == built.path
    assert again == LocalFile.of(again.path)
    said = [event.text for event in events if isinstance(event, Notice) and str(built.path.parent) in event.text]
    assert len(said) == 1
    assert [path.name for path in (cache.root / "llama").iterdir()] == [built.path.parent.name]


async def test_without_any_way_to_a_wheel_the_hint_says_what_to_do(index: PackageIndex, cache: WheelCache) -> None:
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python"))
    alpine = replace(NODE, libc="musl", libc_version=(1, 2))
    with pytest.raises(NodeError) as caught:
        await cache.llama_wheel(alpine, "cpu", lambda _: None)
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert "compiler" in caught.value.hint


async def test_a_keeper_without_a_compiler_says_which_package_has_one(
    index: PackageIndex, cache: WheelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NodeError) as caught:
        await cache.llama_wheel(HERE, "cpu", lambda _: None)
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert "build-essential" in caught.value.hint


# --- building it ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builds of these tests compile nothing."""
    monkeypatch.setenv("CXX", "c++")


@pytest.mark.usefixtures("compiler")
async def test_a_build_shows_its_steps_and_ends_in_the_cache(
    index: PackageIndex, cache: WheelCache, events: list[Event]
) -> None:
    source = write_source(index.folder, "llama_cpp_python", tag=LLAMA_TAG)
    index.lock(requirements.LLAMA, source)
    built = await cache.llama_wheel(HERE, "cpu", events.append)
    with zipfile.ZipFile(built.path) as archive:
        assert "GGML_CPU_ALL_VARIANTS=ON" in archive.read("llama_cpp_python/__init__.py").decode()
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.text for event in progress][:2] == [
        "fetching the build tools",
        "downloading the source of llama_cpp_python 1.0",
    ]
    steps = [(event.done, event.total) for event in progress if event.key == building.KEY and event.total]
    assert steps == [(1.0, 3.0), (2.0, 3.0), (3.0, 3.0)]
    assert in_progress(cache.root) == []
    assert not cache.build_log("cpu").exists()
    index.vanish()
    assert await cache.llama_wheel(HERE, "cpu", events.append) == built


@pytest.mark.usefixtures("compiler")
async def test_a_failed_build_names_the_error_and_its_log(index: PackageIndex, cache: WheelCache) -> None:
    body = "print('part2.c:7:1: error: no such thing')\nsys.exit(3)"
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=LLAMA_TAG, body=body))
    with pytest.raises(NodeError) as caught:
        await cache.llama_wheel(HERE, "cpu", lambda _: None)
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert "no such thing" in caught.value.message
    assert str(cache.build_log("cpu")) in caught.value.hint
    assert "[2/3]" in cache.build_log("cpu").read_text()
    assert in_progress(cache.root) == []


@pytest.mark.usefixtures("compiler")
async def test_a_canceled_build_ends_its_processes_and_keeps_nothing_but_its_folder(
    index: PackageIndex, cache: WheelCache, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    note = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    body = f"{note}\nprint('[3/3] slow', flush=True)\ntime.sleep(600)"
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=LLAMA_TAG, body=body))
    slow = asyncio.Event()

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.key == building.KEY and event.done == 3 and pid_file.exists():
            slow.set()

    task = asyncio.create_task(cache.llama_wheel(HERE, "cpu", emit))
    await asyncio.wait_for(slow.wait(), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(int(pid_file.read_text()))
    assert [path.name[: len(PREFIX)] for path in cache.root.glob(".*")] == [PREFIX]
    assert cache.find_llama(HERE, "cpu") is None


@pytest.mark.usefixtures("compiler")
async def test_of_two_builds_at_once_one_builds_and_the_other_says_that_it_waits(
    index: PackageIndex, cache: WheelCache, tmp_path: Path, events: list[Event]
) -> None:
    count = tmp_path / "count"
    body = f"open({str(count)!r}, 'a').write('x')"
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=LLAMA_TAG, body=body))
    one, two = await asyncio.gather(*(cache.llama_wheel(HERE, "cpu", events.append) for _ in range(2)))
    assert one == two
    assert count.read_text() == "x"
    assert sum(isinstance(event, Notice) and "waiting" in event.text for event in events) == 1


def test_each_backend_has_its_own_portable_flags() -> None:
    flags = {backend: building.cmake_flags(NODE, backend) for backend in COMPILED_BACKENDS}
    assert len(set(flags.values())) == len(COMPILED_BACKENDS)
    for text in flags.values():
        assert {"-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"} <= set(text.split())
    assert "ALL_VARIANTS" not in building.cmake_flags(Target("Darwin", "aarch64", "macos", (14, 5), (3, 12)), "metal")


def test_a_lock_line_reads_as_it_was_written(index: PackageIndex) -> None:
    wheel = write_wheel(index.folder, "one", {})
    index.lock(requirements.BASE, wheel)
    (line,) = requirements.read(requirements.BASE)
    assert line.line() == lock_line(wheel)
