"""A build that was interrupted goes on where it was; what can no longer be gone on with goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from uv import find_uv_bin

from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Emit, Event, Notice, Progress
from rbee.base.files import LocalFile
from rbee.setup.base import hold_build, requirements
from rbee.setup.base.node_scripts import Place
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import Builders
from rbee.setup.wheels import building, cached, kept, portable
from rbee.setup.wheels.cache import Ways, WheelCache
from rbee.setup.wheels.node_build import NodeBuilder
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import ErrorCode
from rbee_remote.sweep import files as survey_files
from tests.patience import PATIENCE_S
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_source

HERE = Target.here()
LLAMA_TAG = "py3-none-linux_x86_64"

#: Stands for ninja, which leaves out what its log has; the first time it gets stuck after the fourth of ten files.
_STEPS = """\
build = pathlib.Path(config_settings["build-dir"])
assert pathlib.Path("pyproject.toml").exists(), "it is relative to the source"
is_first = not build.exists()
build.mkdir(exist_ok=True)
log = build / ".ninja_log"
is_first and log.write_text("# ninja log v5\\n")
done = [line.split("\\t")[3] for line in log.read_text().splitlines()[1:]]
left = [name for name in map(str, range(10)) if name not in done]
for number, name in enumerate(left, 1):
    with log.open("a") as file:
        file.write(f"0\\t1\\t2\\t{name}\\tx\\n")
    print(f"[{number}/{len(left)}] cc -c {name}.c", flush=True)
    is_first and name == "3" and time.sleep(600)
"""


@pytest.fixture
def cache(index: PackageIndex, cache: WheelCache, monkeypatch: pytest.MonkeyPatch) -> WheelCache:
    monkeypatch.setenv("CXX", "c++")
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=LLAMA_TAG, body=_STEPS))
    return cache


async def _interrupt(cache: WheelCache, get: Callable[[Emit], Awaitable[LocalFile]] | None = None) -> None:
    """Break the build off at the fourth of ten files. get: begins it, by default one that is for here."""
    stuck = asyncio.Event()

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.key == building.KEY and (event.done, event.total) == (4, 10):
            stuck.set()

    task = asyncio.ensure_future(get(emit) if get else cache.llama_wheel(HERE, "cpu", emit))
    await asyncio.wait_for(stuck.wait(), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_interrupted_build_goes_on_where_it_was(
    cache: WheelCache, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _interrupt(cache)
    (item,) = (item for item in cached.contents(cache.root) if item.state is cached.State.HALF_MADE)
    assert item.path.name.startswith(kept.PREFIX)
    assert kept.is_begun(item.path)
    (index.folder / "llama_cpp_python-1.0.tar.gz").unlink()  # which is not fetched again

    monkeypatch.setenv("CXXFLAGS", "-O1")
    await _interrupt(cache)  # at the fourth of ten again: what is made otherwise is made anew

    events: list[Event] = []
    await cache.llama_wheel(HERE, "cpu", events.append)
    assert any(isinstance(event, Notice) and "from where that was interrupted" in event.text for event in events)
    assert any(isinstance(event, Notice) and "goes on: 4 files are done" in event.text for event in events)
    steps = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.key == building.KEY]
    assert [step for step in steps if step[1] == 10] == [(float(done), 10.0) for done in range(5, 11)]
    assert list(cache.root.glob(".*")) == []


async def test_a_build_on_a_node_goes_on_in_its_folder_there(
    cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, node = tmp_path / "node", replace(HERE, libc="musl", libc_version=(1, 2))
    (home / "runtimes").mkdir(parents=True)
    monkeypatch.setattr(WheelCache, "tool_wheels", _no_tools)
    place = Place(str(home), find_uv_bin(), sys.executable)
    async with LocalConnection(keeper_id="k1") as connection:
        builder = NodeBuilder(connection, "gpu1", place, tmp_path / "log", cache, building.forecast("gpu1", 2, "cpu"))

        async def on_node(flags: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
            return await builder.build(node, flags, folder, emit)

        get = partial(cache.llama_wheel, node, "cpu", ways=Ways(on_node), builders=Builders("gpu1 key"))
        await _interrupt(cache, get)
        (there,) = (home / "runtimes").glob(".staging-*")
        assert survey_files._STAGING.fullmatch(there.name)  # which the node's own clean-up knows
        events: list[Event] = []
        (begun,) = cache.root.glob(f"{kept.PREFIX}*")
        assert kept.is_begun(begun)
        await get(events.append)
    assert any(isinstance(event, Notice) and "goes on: 4 files are done" in event.text for event in events)
    assert list((home / "runtimes").glob(".staging-*")) == list(cache.root.glob(".*")) == []


def _programs_without(folder: Path, tool: str) -> str:
    """A PATH with all that this machine has but one."""
    folder.mkdir()
    for program in (program for place in os.get_exec_path() for program in Path(place).glob("*")):
        if program.name != tool and not (folder / program.name).is_symlink():
            (folder / program.name).symlink_to(program)
    return str(folder)


@pytest.mark.parametrize(
    ("backend", "tool", "how"),
    [("vulkan", "glslc", "apt install glslc"), ("rocm", "hipcc", "ROCm 6.1"), ("cuda", "nvcc", "CUDA toolkit")],
)
async def test_a_node_without_the_tools_for_a_gpu_is_sent_nothing(
    backend: str, tool: str, how: str, cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = replace(HERE, libc="glibc", libc_version=(2, 17))  # too old for the toolkit that rbee would bring
    flags = building.cmake_flags(node, backend)
    for name in ("VULKAN_SDK", "ROCM_PATH", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", _programs_without(tmp_path / "bin", tool))
    monkeypatch.delenv("CUDACXX", raising=False)
    said: list[Event] = []
    async with LocalConnection(keeper_id="k1") as connection:
        place = Place(str(tmp_path / "node"), find_uv_bin(), sys.executable)
        builder = NodeBuilder(connection, "gpu1", place, tmp_path / "log", cache, building.forecast("gpu1", 2, backend))
        with pytest.raises(NodeError, match=f"gpu1 has no `{tool}`") as raised:
            await builder.build(node, flags, tmp_path, said.append)
        assert how in str(raised.value.hint)
        assert not said
        folder = tmp_path / {"glslc": "VULKAN_SDK", "hipcc": "ROCM_PATH", "nvcc": "CUDA_PATH"}[tool] / "bin"
        folder.mkdir(parents=True)
        (folder / tool).touch(0o755)
        await builder._check_tools(flags, node)


async def test_a_disk_without_room_for_a_build_for_cuda_is_told_of_first(
    cache: WheelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "missing_tool", lambda *_: None)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=(building.CUDA_MB - 1) * 10**6))
    said: list[Event] = []
    with pytest.raises(NodeError, match="MB of disk here") as raised:
        await cache.llama_wheel(HERE, "cuda", said.append)
    assert raised.value.code is ErrorCode.DISK_FULL
    assert not [event for event in said if isinstance(event, Progress)]
    assert list(cache.root.glob(".*")) == []


def test_a_toolkit_that_is_brought_is_not_looked_for() -> None:
    node = replace(HERE, machine="x86_64", libc="glibc", libc_version=(2, 31), cuda=(13, 0), gpus=frozenset({(8, 9)}))
    assert building.needed_on_node(building.cmake_flags(node, "cuda"), node) is None
    assert building.needed_on_node(building.cmake_flags(node, "cpu"), node) is None


async def _no_tools(*_: object) -> list[LocalFile]:
    return []


# --- the folder -----------------------------------------------------------------------------------------------------


def _broken_off(root: Path, flags: str, built_on: str, error: BaseException) -> tuple[Path, str]:
    """The folder of a build that `error` ended, and its nonce."""
    found = []
    with suppress(type(error)), kept.build_folder(root, flags, built_on) as folder:
        found.append((folder, kept.nonce(folder)))
        raise error
    return found[0]


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (ConnectError(ErrorCode.CONNECTION_LOST, "lost"), True),
        (asyncio.CancelledError(), True),
        (KeyboardInterrupt(), True),
        (NodeError(ErrorCode.BOOTSTRAP_FAILED, "error: no such thing"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_was_interrupted_stays_and_what_failed_goes(error: BaseException, stays: bool, tmp_path: Path) -> None:
    folder, name = _broken_off(tmp_path, "-DX=ON", "gpu1 key", error)
    assert folder.exists() == stays
    with kept.build_folder(tmp_path, "-DX=ON", "gpu1 key") as again:
        assert again == folder
        assert (kept.nonce(again) == name) == stays
    assert list(tmp_path.iterdir()) == []


def test_each_build_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT", 9)
    folders = set()
    for flags, built_on in [("a", ""), ("b", ""), ("a", "gpu1 key"), ("a", "gpu2 key")]:
        folder, _ = _broken_off(tmp_path, flags, built_on, KeyboardInterrupt())
        folders.add(folder)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert set(tmp_path.iterdir()) == folders
    assert len(folders) == 4


def test_few_are_kept_and_none_for_long(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{kept.PREFIX}{number}"
        path.mkdir()
        changed = time.time() - number * 3600 - (kept.OLDEST_S if number == 1 else 0)
        os.utime(path, (changed, changed))
    (tmp_path / ".staging-another").mkdir()
    with kept.build_folder(tmp_path, "", "") as folder:
        left = {path.name for path in tmp_path.iterdir()} - {folder.name}
    assert left == {f"{kept.PREFIX}0", f"{kept.PREFIX}2", ".staging-another"}


# --- what still runs --------------------------------------------------------------------------------------------------


def _hold(folder: Path, patience: str) -> subprocess.CompletedProcess[str]:
    with (folder / "lock").open("a+") as lock:
        words = [sys.executable, "-I", hold_build.__file__, str(folder), patience]
        return subprocess.run(words, stdin=lock, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@contextmanager
def _running(folder: Path, *, locked: bool) -> Iterator[subprocess.Popen[bytes]]:
    """What is left of a build: without its parent, which had the lock, or a compiler of which only the place tells."""
    script = f"{sys.executable} -c 'import fcntl; fcntl.flock(0, 2); print(flush=True)'; exec sleep 600"
    with (folder / "lock").open("a+") as lock:
        words = ["/bin/sh", "-c", script if locked else "echo; exec sleep 600"]
        stdin = lock if locked else subprocess.DEVNULL
        cwd = Path("/") if locked else folder
        process = subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, cwd=cwd)
    try:
        assert process.stdout
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("locked", [True, False])
def test_no_two_builds_work_in_one_folder(tmp_path: Path, locked: bool) -> None:
    with _running(tmp_path, locked=locked):
        refused = _hold(tmp_path, "0.3")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert "earlier build still works in" in refused.stderr
    assert "waiting for" in refused.stdout
    assert _hold(tmp_path, "0").returncode == 0
