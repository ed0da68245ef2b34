"""Bootstrap: the plan is pure; the steps run for real, with this machine as a node and tiny packages."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import NodeError
from rbee.base.events import Event, Notice, Progress
from rbee.base.files import LocalFile
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node, WheelIndex
from rbee.node import traces
from rbee.node.diagnosis import needed_mb
from rbee.node.probe import Gpu, Probe
from rbee.node.session import NodeSession, PerNode
from rbee.setup import bootstrap, elsewhere, interpreter, own_way, supplies
from rbee.setup.base import node_scripts, requirements
from rbee.setup.base.node_scripts import IMPORTS
from rbee.setup.base.payload import build_compiled, build_payload
from rbee.setup.base.platforms import Target
from rbee.setup.bootstrap import Step, plan
from rbee.setup.index.builders import OFFICIAL_URL, Builders
from rbee.setup.interpreter import Interpreter
from rbee.setup.prerequisites import check
from rbee.setup.wheels import building, toolkit
from rbee.setup.wheels.cache import Origin, WheelCache
from rbee.setup.wheels.node_build import NodeBuilder
from rbee.transport.connection import Completed
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection
from tests.doubles.session import session_over
from tests.patience import PATIENCE_S
from tests.tls import server_context
from tests.unit.setup.cuda_library import CC, container, library
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_source, write_wheel
from tests.unit.setup.wheel_server import body, make_wheel, serving

HERE = Target.here()
LOCAL = Node("local")
LLAMA_TAG = "py3-none-linux_x86_64" if HERE.machine == "x86_64" else "py3-none-linux_aarch64"
PACKAGES = [name.strip().partition(".")[0] for name in IMPORTS.split(",")]


# --- the plan -------------------------------------------------------------------------------------------------------

BARE = Probe(
    system="Linux",
    machine="x86_64",
    libc="glibc 2.36",
    home="/home/bee/.rbee/node",
    python="/usr/bin/python3",
    python_version=(3, 11, 2),
    disk_free_mb=10_000,
)
KEY, DIGEST = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    ("probe", "steps"),
    [
        (BARE, [Step.WHEELS, Step.RUNTIME, Step.PAYLOAD]),
        (replace(BARE, runtimes=frozenset({KEY})), [Step.PAYLOAD]),
        (replace(BARE, payloads=frozenset({DIGEST})), [Step.WHEELS, Step.RUNTIME]),
        (replace(BARE, payloads=frozenset({DIGEST}), runtimes=frozenset({KEY})), []),
        (replace(BARE, python="", python_version=None), [Step.PYTHON, Step.WHEELS, Step.RUNTIME, Step.PAYLOAD]),
        (replace(BARE, python_version=(3, 9, 2)), [Step.PYTHON, Step.WHEELS, Step.RUNTIME, Step.PAYLOAD]),
    ],
)
def test_the_plan_has_what_is_missing_in_order(probe: Probe, steps: list[Step]) -> None:
    assert plan(probe, DIGEST, KEY) == steps


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"system": "FreeBSD"}, ErrorCode.NODE_UNSUPPORTED, "FreeBSD"),
        ({"machine": "riscv64"}, ErrorCode.NODE_UNSUPPORTED, "riscv64"),
        ({"home_writable": False}, ErrorCode.BOOTSTRAP_FAILED, "cannot be written"),
        ({"home_noexec": True}, ErrorCode.NODE_UNSUPPORTED, "noexec"),
        ({"disk_free_mb": 299}, ErrorCode.DISK_FULL, "299 MB"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    change: dict[str, object], code: ErrorCode, words: str
) -> None:
    with pytest.raises(NodeError) as caught:
        check(replace(BARE, **change), makes_runtime=True)  # type: ignore[arg-type]
    assert caught.value.code is code
    assert words in caught.value.message
    assert caught.value.hint


async def test_a_musl_node_without_a_compiler_is_refused_before_anything_is_written(bed: Testbed) -> None:
    bed.provide_llama()
    node = FakeConnection()  # has no answer to any script
    alpine = bed.probe(libc="musl 1.2.4", compiler="")
    with pytest.raises(NodeError) as caught:
        await bootstrap.ensure(session_over(node, Node("gpu1"), bed.context), alpine, build_payload())
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert "musl1.2" in caught.value.message
    assert "apk add build-base" in caught.value.hint


def test_a_full_disk_does_not_stop_a_new_payload() -> None:
    check(replace(BARE, disk_free_mb=5), makes_runtime=False)
    with pytest.raises(NodeError):
        check(replace(BARE, disk_free_mb=5), makes_runtime=True)


# --- the steps, for real --------------------------------------------------------------------------------------------


@dataclass
class Testbed:
    """A node below `home`, and a keeper whose cache has a runtime of tiny packages."""

    __test__ = False

    home: Path
    index: PackageIndex
    context: Context
    connection: LocalConnection
    events: list[Event]

    @property
    def cache(self) -> WheelCache:
        return WheelCache.of(self.context.settings)

    def probe(self, **changes: object) -> Probe:
        """What a probe would find now."""
        names = {path.name for path in self.home.glob("runtimes/*") if not path.name.startswith(".")}
        found = Probe(
            system=HERE.system,
            machine=HERE.machine,
            libc=f"{HERE.libc} {'.'.join(map(str, HERE.libc_version))}",
            home=str(self.home),
            python=sys.executable,
            python_version=sys.version_info[:3],
            disk_free_mb=10_000,
            payloads=frozenset(path.stem for path in self.home.glob("payloads/*.zip")),
            runtimes=frozenset(name for name in names if (self.home / "runtimes" / name / "bin/python").exists()),
            uv=frozenset(name for name in names if name.startswith("uv-")),
        )
        return replace(found, **changes)  # type: ignore[arg-type]

    def session(self, node: Node = LOCAL) -> NodeSession:
        return session_over(self.connection, node, self.context)

    async def ensure(self, probe: Probe | None = None, node: Node = LOCAL) -> bootstrap.Ready:
        return await bootstrap.ensure(self.session(node), probe or self.probe(), build_payload())

    def provide_llama(self, code: str = "") -> None:
        files = {"llama_cpp/__init__.py": b"", "llama_cpp/llama_cpp.py": code.encode()}
        wheel = write_wheel(self.index.folder, "llama_cpp_python", files, tag=LLAMA_TAG)
        self.index.lock(requirements.LLAMA, wheel)
        self.cache.add_wheel(wheel, "cpu")

    def left_over(self) -> list[Path]:
        return [*self.home.glob("runtimes/.staging-*"), *self.home.rglob("*.part")]


def _tiny(name: str) -> dict[str, bytes]:
    return {f"{name}/__init__.py": b"", f"{name}/applications.py": b""}


@pytest.fixture
async def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Testbed]:
    index = PackageIndex(tmp_path, monkeypatch)
    index.lock(requirements.BASE, *(write_wheel(index.folder, name, _tiny(name)) for name in PACKAGES))

    def no_registry() -> None:
        raise AssertionError("a bootstrap needs no registry")

    settings = Settings(home=tmp_path / "rbee")
    events = list[Event]()
    context = Context(settings, Inventory({}), no_registry, "0" * 16, emit=events.append)  # type: ignore[arg-type]
    async with LocalConnection(keeper_id="0" * 16) as connection:
        yield Testbed(tmp_path / "a home", index, context, connection, events)


async def test_a_bare_node_gets_a_runtime_that_runs_and_a_payload(bed: Testbed) -> None:
    bed.provide_llama("BUILT = 'here'")
    ready = await bed.ensure()
    assert ready.command == (ready.python, "-I", ready.payload)
    assert ready.backend == "cpu"
    assert Path(ready.payload).read_bytes() == build_compiled().data
    script = f"'{ready.python}' -I -c 'import jinja2; from llama_cpp.llama_cpp import BUILT; print(BUILT)'"
    assert (await bed.connection.run(script)).stdout == b"here\n"
    (compiled,) = Path(ready.runtime).glob("lib/*/site-packages/jinja2/__pycache__/__init__.*.pyc")
    assert compiled.read_bytes()[4] == 1, "it is what the keeper compiled: named by a hash, not by a time"
    assert not list(bed.home.glob("runtimes/uv-*"))
    assert not [path for path in Path(ready.runtime).rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o77]
    assert bed.home.stat().st_mode & 0o777 == 0o700
    assert bed.left_over() == []


async def test_uploads_are_reported_in_bytes_under_one_bar_for_all_wheels(bed: Testbed) -> None:
    bed.provide_llama()
    await bed.ensure()
    wheels = [event for event in bed.events if isinstance(event, Progress) and event.key == "wheels"]
    assert {event.total for event in wheels} == {wheels[-1].done}
    assert [event.done for event in wheels] == sorted(event.done for event in wheels)
    assert any(isinstance(event, Progress) and event.key == "runtime" for event in bed.events)


async def test_a_second_bootstrap_does_not_even_talk_to_the_node(bed: Testbed) -> None:
    bed.provide_llama()
    first = await bed.ensure()
    nobody = FakeConnection(lost=True)
    probe = bed.probe()
    assert bootstrap.is_complete(bed.session(), probe, build_payload())
    context = replace(bed.context, emit=lambda _: pytest.fail("nothing to tell"))
    again = await bootstrap.ensure(session_over(nobody, LOCAL, context), probe, build_payload())
    assert again == first


async def test_while_a_first_runtime_is_made_and_only_then_something_else_is_done(bed: Testbed) -> None:
    bed.provide_llama()
    homes: list[str] = []

    async def meanwhile(home: str) -> None:
        assert Path(home).is_dir()
        homes.append(home)

    await bootstrap.ensure(bed.session(), bed.probe(), build_payload(), meanwhile)
    await bootstrap.ensure(bed.session(), replace(bed.probe(), payloads=frozenset()), build_payload(), meanwhile)
    older = replace(bed.probe(), runtimes=frozenset({"another"}))
    await bootstrap.ensure(bed.session(), older, build_payload(), meanwhile)
    assert homes == [str(bed.home)]


async def test_an_error_of_what_is_done_meanwhile_ends_the_bootstrap(bed: Testbed, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    bed.provide_llama(f"import pathlib, time; pathlib.Path({str(reached)!r}).touch(); time.sleep(600)")

    async def meanwhile(_: str) -> None:
        while not reached.exists():
            await asyncio.sleep(0.02)
        raise NodeError(ErrorCode.MODEL_NOT_FOUND, "there is no such model")

    with pytest.raises(NodeError, match="there is no such model"):
        await bootstrap.ensure(bed.session(), bed.probe(), build_payload(), meanwhile)
    assert bed.probe().runtimes == frozenset()
    async with asyncio.timeout(PATIENCE_S):
        while bed.left_over():
            await asyncio.sleep(0.02)


async def test_an_uninstall_ends_what_still_compiles_and_leaves_nothing(bed: Testbed, tmp_path: Path) -> None:
    slow = {"numpy/__init__.py": b"", "numpy/ctypeslib.py": b"import time; time.sleep(600)"}
    packages = [write_wheel(bed.index.folder, name, _tiny(name)) for name in PACKAGES]
    bed.index.lock(requirements.BASE, *packages, write_wheel(bed.index.folder, "numpy", slow))
    bed.provide_llama()
    await bed.ensure()
    found = bed.probe(run_dir=str(tmp_path / "run"))

    async def look() -> traces.Traces:
        return traces.parse((await bed.connection.run(traces.look_script(found))).stdout, found.home)

    assert [process.command for process in (await look()).processes] == ["python"]
    await bed.connection.run(traces.end_script(found, 5))
    left = await look()
    assert left.processes == ()
    await bed.connection.run(traces.remove_script(found, left, models=True))
    assert not bed.home.exists()


async def test_the_payload_is_on_its_way_while_the_runtime_is_made(bed: Testbed, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    bed.provide_llama(f"import pathlib, time\nwhile not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)")
    task = asyncio.create_task(bed.ensure())
    async with asyncio.timeout(PATIENCE_S):
        while not bed.probe().payloads:
            await asyncio.sleep(0.02)
    assert not bed.probe().runtimes
    go_on.touch()
    await task


async def test_two_bootstraps_at_once_leave_one_runtime(bed: Testbed) -> None:
    bed.provide_llama()
    bare = bed.probe()
    one, two = await asyncio.gather(bed.ensure(bare), bed.ensure(bare))
    assert one == two
    assert len(bed.probe().runtimes) == 1
    assert bed.left_over() == []


async def test_a_runtime_that_does_not_work_never_gets_its_name(bed: Testbed) -> None:
    bed.provide_llama("raise ImportError('libgomp.so.1: cannot open shared object file')")
    with pytest.raises(NodeError) as caught:
        await bed.ensure()
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert "libgomp.so.1" in caught.value.message
    assert bed.probe().runtimes == frozenset()
    assert bed.left_over() == []


async def test_an_interrupted_bootstrap_is_not_seen_and_the_next_one_succeeds(bed: Testbed, tmp_path: Path) -> None:
    reached, go_on = tmp_path / "reached", tmp_path / "go on"
    bed.provide_llama(
        "import pathlib, time\n"
        f"pathlib.Path({str(reached)!r}).touch()\n"
        f"while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)"
    )
    task = asyncio.create_task(bed.ensure())
    async with asyncio.timeout(PATIENCE_S):
        while not reached.exists():
            await asyncio.sleep(0.02)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert bed.probe().runtimes == frozenset()
    async with asyncio.timeout(PATIENCE_S):
        while bed.left_over():
            await asyncio.sleep(0.02)
    go_on.touch()
    ready = await bed.ensure()
    assert Path(ready.python).exists()


@pytest.mark.parametrize("gone", ["bin/python", "bin", "lib"])
async def test_a_runtime_that_was_half_deleted_is_made_anew(bed: Testbed, gone: str) -> None:
    bed.provide_llama()
    runtime = Path((await bed.ensure()).runtime)
    shutil.move(runtime / gone, bed.home / "gone")
    await bed.ensure(bed.probe(runtimes=frozenset()))
    assert (runtime / gone).exists()
    assert bed.left_over() == []


@pytest.mark.parametrize(
    "fails", ["raise OSError('no libcudart.so.12')", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"]
)
async def test_a_prebuilt_wheel_that_does_not_run_on_the_node_is_built_instead(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setenv("CXX", "c++")
    code = {"llama_cpp/__init__.py": b"", "llama_cpp/llama_cpp.py": fails.encode()}
    wheel = write_wheel(bed.index.folder / "index", "llama_cpp_python", code, tag=LLAMA_TAG)
    package = "{'llama_cpp/__init__.py': b'', 'llama_cpp/llama_cpp.py': b''}"
    lines = [
        "import tiny_packages",
        "write = tiny_packages.write_wheel",
        f"tiny_packages.write_wheel = lambda folder, name, _, **rest: write(folder, name, {package}, **rest)",
    ]
    bed.index.lock(
        requirements.LLAMA, write_source(bed.index.folder, "llama_cpp_python", tag=LLAMA_TAG, body="\n".join(lines))
    )
    bed.cache.add_wheel(wheel, "cpu", origin=Origin(OFFICIAL_URL))
    assert Path((await bed.ensure()).python).exists()
    said = [event.text for event in bed.events if isinstance(event, Notice)]
    assert ["built instead" in text for text in said].count(True) == 1, said
    assert bed.left_over() == []
    shutil.rmtree(bed.home)
    bed.events.clear()
    await bed.ensure()
    assert not [event for event in bed.events if isinstance(event, Notice)], "what was built is used from then on"


async def test_a_build_of_our_own_that_does_not_run_on_the_node_is_the_error(bed: Testbed) -> None:
    bed.provide_llama("raise OSError('no')")
    with pytest.raises(NodeError, match="no"):
        await bed.ensure()
    assert not [event for event in bed.events if isinstance(event, Notice) and "built instead" in event.text]


@pytest.mark.parametrize("name", ["packages.tar", "llama_cpp_python-*.whl"])
async def test_damaged_wheels_are_sent_anew(bed: Testbed, name: str) -> None:
    bed.provide_llama()
    shutil.rmtree((await bed.ensure()).runtime)
    (file,) = bed.home.glob(f"runtimes/wheels/*/{name}")
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"x")
    assert Path((await bed.ensure()).python).exists()
    assert any(isinstance(event, Notice) and "sent again" in event.text for event in bed.events)
    assert bed.left_over() == []


def test_the_staging_folder_goes_when_nobody_reads_any_more(tmp_path: Path) -> None:
    """What a killed keeper leaves: the shell is to end, and cannot even say so."""
    home, staging = tmp_path / "home", tmp_path / "home/runtimes/.staging-n"
    script = node_scripts.prepare(str(home)) + "\n".join([*node_scripts.staging(str(home), "n"), "sleep 10", "true"])
    with subprocess.Popen(
        ["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as shell:
        assert shell.stdin
        assert shell.stdout
        shell.stdin.write(script.encode())
        shell.stdin.close()
        deadline = time.monotonic() + PATIENCE_S
        while not staging.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        shell.stdout.close()
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(PATIENCE_S)  # a signal between fork and exec does not reach `sleep`
    assert not staging.exists()


async def test_wheels_that_are_on_the_node_do_not_travel_again(bed: Testbed) -> None:
    bed.provide_llama()
    ready = await bed.ensure()
    shutil.rmtree(Path(ready.python).parents[1])
    bed.events.clear()
    await bed.ensure()
    assert not [event for event in bed.events if isinstance(event, Progress) and event.key in {"wheels", "uv"}]
    assert Path(ready.python).exists()


async def test_leftovers_of_long_ago_go_and_those_of_today_stay(bed: Testbed) -> None:
    bed.provide_llama()
    stale, fresh = (bed.home / "runtimes" / f".staging-{name}" for name in ("stale", "fresh"))
    for folder in (stale, fresh):
        folder.mkdir(parents=True)
    await bed.connection.run(f"touch -d '3 days ago' '{stale}'")
    await bed.ensure()
    assert not stale.exists()
    assert fresh.exists()


async def test_a_node_without_python_gets_the_keepers_where_that_can_be_moved(
    bed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a program that starts this Python; `tests/e2e/test_one_file.py` has a real one."""
    bed.provide_llama()
    program = tmp_path / "movable" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    brought = Interpreter(program.parents[1], sys.version_info[:2], HERE, "d" * 16)
    monkeypatch.setattr(Interpreter, "own", lambda: brought)
    ready = await bed.ensure(bed.probe(python="", python_version=None))
    assert Path(ready.python).exists()
    there = bed.home / "runtimes" / "python" / brought.name
    assert (there / "bin" / "python").read_bytes() == program.read_bytes()
    assert there.stat().st_mode & 0o777 == 0o700
    assert list(bed.home.glob("runtimes/wheels/*/*.tar.gz")) == []
    uploads = {event.text for event in bed.events if isinstance(event, Progress) and event.key == "python"}
    assert uploads == {"uploading a Python"}
    shutil.rmtree(ready.runtime)
    assert await bed.ensure(bed.probe(python="", python_version=None)) == ready  # it is there by now
    assert [path.name for path in there.parent.iterdir()] == [brought.name]
    assert bed.left_over() == []


async def test_a_python_is_not_brought_to_where_it_does_not_run(bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Target("Linux", "x86_64", "glibc", (2, 35), (3, 11))
    monkeypatch.setattr(Interpreter, "own", lambda: Interpreter(Path("/unused"), (3, 11), builder, "d" * 16))
    changes: list[dict[str, Any]] = [
        {}, {"libc_version": (2, 34)}, {"machine": "aarch64"}, {"libc": "musl"}, {"system": "Darwin"}
    ]  # fmt: skip
    for changed in changes:
        found = interpreter.for_node(replace(builder, **changed))
        assert (found is None) == bool(changed)
    monkeypatch.undo()
    assert interpreter.for_node(builder) is None  # this rbee is no one file


def test_what_travels_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "python" / "lib").mkdir(parents=True)
    (tmp_path / "python" / "lib" / "os.py").write_text("x = 1\n")
    (tmp_path / "python" / "link").symlink_to("lib")
    brought = Interpreter(tmp_path / "python", (3, 11), HERE, "d" * 16)
    first = brought.archive(Settings(tmp_path / "one"))
    os.utime(tmp_path / "python" / "lib" / "os.py", (1, 1))
    assert brought.archive(Settings(tmp_path / "two")).sha256 == first.sha256
    assert [path.name for path in first.path.parent.iterdir()] == ["rbee-3.11-dddddddddddddddd.tar.gz"]


async def test_a_node_with_a_compiler_builds_for_itself_and_for_the_next_one(bed: Testbed) -> None:
    """The node has an older C library than the keeper, so what is built here may not run there."""
    source = write_source(bed.index.folder, "llama_cpp_python", tag=LLAMA_TAG)
    bed.index.lock(requirements.LLAMA, source)
    bed.index.lock(requirements.BUILD, write_wheel(bed.index.folder, "cmake", {"cmake.py": b""}))
    older = bed.probe(libc=f"{HERE.libc} 2.17", compiler="/usr/bin/cc")
    with pytest.raises(NodeError) as caught:
        await bed.ensure(older)
    assert "llama_cpp" in str(caught.value.details["stderr"])  # the tiny source makes no such module
    built = bed.cache.find_llama(Target.of(older, sys.version_info[:2]), "cpu")
    assert built is not None
    steps = [event for event in bed.events if isinstance(event, Progress) and event.key == "build" and event.total]
    assert [event.done for event in steps] == [1.0, 2.0, 3.0]
    assert bed.left_over() == []


async def test_what_a_bootstrap_would_take_is_gathered_before_it_and_built_on_the_node_where_it_would_be(
    bed: Testbed,
) -> None:
    source = write_source(bed.index.folder, "llama_cpp_python", tag=LLAMA_TAG)
    bed.index.lock(requirements.LLAMA, source)
    older = bed.probe(libc=f"{HERE.libc} 2.17", compiler="/usr/bin/cc")
    gathered = await supplies.gather(bed.session(Node("gpu1", host="gpu1")), older)
    assert not gathered.was_there
    assert list(gathered.packages.glob("*.whl"))
    assert os.access(gathered.uv, os.X_OK)
    assert [path.name for path in (bed.home / "runtimes").iterdir() if path.name != "wheels"] == [
        f"uv-{requirements.uv().version}"
    ]
    shutil.rmtree(bed.home)
    bed.index.vanish()
    again = await supplies.gather(bed.session(Node("gpu1", host="gpu1")), older)
    assert again == replace(gathered, was_there=True)
    assert not bed.home.exists(), "what the cache has needs nothing of the node"


async def test_a_build_for_cuda_is_made_for_the_nodes_that_share_it_and_the_runtime_for_its_own(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_for: list[Target] = []
    wheel = write_wheel(bed.index.folder, "llama_cpp_python", {"llama_cpp/__init__.py": b""}, tag=LLAMA_TAG)
    bed.index.lock(requirements.LLAMA, wheel)

    async def make(_: WheelCache, target: Target, *_more: object, **_named: object) -> LocalFile:
        made_for.append(target)
        return LocalFile.of(wheel)

    monkeypatch.setattr(WheelCache, "llama_wheel", make)
    own = bed.probe(gpus=NVIDIA, cuda=(13, 1), compiler="/usr/bin/cc")
    other = replace(Target.here(), cuda=(13, 0), gpus=frozenset({(8, 9)}))
    node = Node("gpu1", host="gpu1", backend="cuda")
    gathered = await supplies.gather(bed.session(node), own, [other])
    assert [(target.cuda, target.gpus) for target in made_for] == [((13, 0), gathered.target.gpus | {(8, 9)})]
    assert gathered.target.cuda == (13, 1)
    cpu = replace(node, backend="cpu")
    await supplies.gather(bed.session(cpu), own, [other])
    assert made_for[-1].gpus == gathered.target.gpus


async def test_a_node_without_a_compiler_has_another_one_build_that_it_names(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.index.lock(requirements.LLAMA, write_source(bed.index.folder, "llama_cpp_python", tag=LLAMA_TAG))
    bed.index.lock(requirements.BUILD, write_wheel(bed.index.folder, "cmake", {"cmake.py": b""}))
    older = f"{HERE.libc} 2.17"
    gpu1, big = Node("gpu1", host="gpu1", builds_from=("big",)), Node("big", host="big")
    context = replace(bed.context, inventory=Inventory({"gpu1": gpu1, "big": big}))
    asked = bed.probe(libc=older, compiler="/usr/bin/cc", cores=64)

    @asynccontextmanager
    async def opened(_: Context, node: Node) -> AsyncIterator[NodeSession]:
        assert node == big
        yield session_over(bed.connection, node, context)

    async def probed(_: NodeSession) -> Probe:
        return asked

    async def seen(_: Context, nodes: Sequence[Node], *_more: object, **_named: object) -> list[PerNode[Probe]]:
        return [PerNode(node, asked) for node in nodes]

    monkeypatch.setattr(supplies, "open_session", opened)
    monkeypatch.setattr(elsewhere, "on_each", seen)
    monkeypatch.setattr(NodeSession, "probe", probed)
    nowhere = session_over(FakeConnection(), gpu1, context)
    gathered = await supplies.gather(nowhere, bed.probe(libc=older, compiler=""))
    assert (bed.home / "runtimes").is_dir(), "which is where `big` has its home"
    allowed, forbidden = (Builders.of(node, context.inventory.nodes) for node in (gpu1, replace(gpu1, builds_from=())))
    assert bed.cache.find_llama(gathered.target, "cpu", allowed) == gathered.llama
    assert bed.cache.find_llama(gathered.target, "cpu", forbidden) is None
    assert any(isinstance(event, Notice) and "built on big" in event.text for event in bed.events)
    assert bed.left_over() == []


async def test_a_node_without_a_gpu_compiles_for_another_ones_with_the_toolkit_for_that(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compiles is doubled: whether that takes the toolkit is seen by what it is asked for."""
    bed.index.lock(requirements.LLAMA, write_source(bed.index.folder, "llama_cpp_python", tag=LLAMA_TAG))
    gpu1 = Node("gpu1", host="gpu1", backend="cuda", builds_from=("big",))
    big = Node("big", host="big")
    context = replace(bed.context, inventory=Inventory({"gpu1": gpu1, "big": big}))
    asked: list[tuple[Target, str]] = []
    bare = bed.probe(libc="glibc 2.28", compiler="/usr/bin/cc", cores=64)

    @asynccontextmanager
    async def opened(_: Context, node: Node) -> AsyncIterator[NodeSession]:
        yield session_over(bed.connection, node, context)

    async def probed(_: NodeSession) -> Probe:
        return bare

    async def seen(_: Context, nodes: Sequence[Node], *_more: object, **_named: object) -> list[PerNode[Probe]]:
        return [PerNode(node, bare) for node in nodes]

    async def compiled(_: NodeBuilder, target: Target, flags: str, *_more: object) -> object:
        asked.append((target, flags))
        raise NodeError(ErrorCode.BOOTSTRAP_FAILED, "far enough")

    monkeypatch.setattr(supplies, "open_session", opened)
    monkeypatch.setattr(elsewhere, "on_each", seen)
    monkeypatch.setattr(NodeSession, "probe", probed)
    monkeypatch.setattr(NodeBuilder, "build", compiled)
    own = bed.probe(libc="glibc 2.28", compiler="", gpus=(Gpu("nvidia", "L4", compute=(8, 9)),), cuda=(13, 0))
    with pytest.raises(NodeError, match="far enough"):
        await supplies.gather(session_over(FakeConnection(), gpu1, context), own)
    ((target, flags),) = asked
    assert toolkit.has_wheels(target)
    assert "-DCMAKE_CUDA_ARCHITECTURES=89-real" in flags


async def test_a_failed_build_on_the_node_names_it_and_the_log_here(bed: Testbed) -> None:
    body = "print('part.c:1: error: out of luck')\nsys.exit(1)"
    bed.index.lock(requirements.LLAMA, write_source(bed.index.folder, "llama_cpp_python", tag=LLAMA_TAG, body=body))
    bed.index.lock(requirements.BUILD, write_wheel(bed.index.folder, "cmake", {"cmake.py": b""}))
    with pytest.raises(NodeError) as caught:
        await bed.ensure(bed.probe(libc=f"{HERE.libc} 2.17", compiler="/usr/bin/cc"), Node("gpu1", host="gpu1"))
    assert "on gpu1" in caught.value.message
    assert "out of luck" in caught.value.message
    assert bed.cache.build_log("cpu").exists()
    assert bed.left_over() == []


async def test_a_node_without_python_that_uv_cannot_help_is_told_what_to_install(bed: Testbed) -> None:
    bed.provide_llama()
    node = FakeConnection()
    node.answer("python install", lambda _: _failed("error: Failed to download: no route to host"))
    node.answer(".*", b"")
    probe = bed.probe(python="", python_version=None)
    with pytest.raises(NodeError) as caught:
        await bootstrap.ensure(session_over(node, LOCAL, bed.context), probe, build_payload())
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert "apt install python3" in caught.value.hint


async def test_a_step_that_fails_says_why(bed: Testbed) -> None:
    error = await _failure_of_a_step(bed, "mkdir: Stale file handle")
    assert error.code is ErrorCode.BOOTSTRAP_FAILED
    assert error.message.startswith("gpu1: ")


async def test_a_step_that_fills_the_disk_says_how_much_it_takes_and_what_is_left(bed: Testbed) -> None:
    error = await _failure_of_a_step(bed, "mkdir: No space left on device")
    assert error.code is ErrorCode.DISK_FULL
    assert error.details == {"needed_mb": needed_mb("cpu"), "free_mb": 20}


async def _failure_of_a_step(bed: Testbed, said: str) -> NodeError:
    bed.provide_llama()
    node = FakeConnection()
    node.answer("say end yes", b"system=Linux\nhome=/home/bee/.rbee/node\ndisk_free_kb=20000\n")
    node.answer("mkdir", lambda _: _failed(said))
    with pytest.raises(NodeError) as caught:
        await bootstrap.ensure(session_over(node, Node("gpu1"), bed.context), bed.probe(), build_payload())
    return caught.value


def _failed(stderr: str) -> Completed:
    return Completed(b"", stderr, 1)


# --- which backend --------------------------------------------------------------------------------------------------

NVIDIA = (Gpu("nvidia", "H100"),)


async def test_a_gpu_without_a_wheel_for_it_falls_back_to_the_cpu_and_says_so_once(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.provide_llama()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("nvcc"):
        pytest.skip("this machine can build for CUDA")
    ready = await bed.ensure(bed.probe(gpus=NVIDIA))
    assert ready.backend == "cpu"
    assert sum(isinstance(event, Notice) and "rbee wheels build" in event.text for event in bed.events) == 1
    bed.events.clear()
    await bed.ensure(bed.probe(gpus=NVIDIA))
    assert bed.events == []


async def test_a_gpu_gets_the_wheel_for_it_from_the_cache(bed: Testbed) -> None:
    bed.provide_llama()
    bed.cache.add_wheel(next(bed.index.folder.glob("llama_cpp_python*.whl")), "cuda")
    cpu = await bed.ensure()
    cuda = await bed.ensure(bed.probe(gpus=NVIDIA))
    assert (cpu.backend, cuda.backend) == ("cpu", "cuda")
    assert cpu.python != cuda.python


async def test_a_node_that_answers_from_its_cpu_is_not_ready_for_who_waits_for_its_gpu(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.provide_llama()
    monkeypatch.setattr(building, "missing_tool", lambda _backend, _target: None)
    await bed.ensure(bed.probe(gpus=NVIDIA))
    session, found, payload = bed.session(), bed.probe(gpus=NVIDIA), build_payload()
    assert bootstrap.is_complete(session, found, payload)
    assert not bootstrap.is_complete(session, found, payload, wait_for_gpu=True)


def _provide_cuda(bed: Testbed, tmp_path: Path) -> list[LocalFile]:
    """A llama.cpp for CUDA 13 in the cache, and its libraries in the index and the lock."""
    code = library(tmp_path, container("sm_90"), needs="libcudart.so.13").getvalue()
    bindings = {"llama_cpp/__init__.py": b"", "llama_cpp/llama_cpp.py": b"", "bin/libggml-cuda.so": code}
    llama = write_wheel(bed.index.folder, "llama_cpp_python", bindings, tag=LLAMA_TAG)
    bed.index.lock(requirements.LLAMA, llama)
    bed.cache.add_wheel(llama, "cuda")
    tag = f"py3-none-manylinux_2_27_{HERE.machine}"
    blas = {"nvidia/cu13/lib/libcublas.so.13": b"blas", "nvidia/cu13/include/cublas.h": b""}
    runtime = {"nvidia/cu13/lib/libcudart.so.13": b"rt"}
    parts = [
        write_wheel(bed.index.folder, "nvidia_cublas", blas, tag=tag),
        write_wheel(bed.index.folder, "nvidia_cuda_runtime", runtime, tag=tag),
    ]
    bed.index.lock("cuda13.txt", *parts)
    return [LocalFile.of(part) for part in parts]


@pytest.mark.skipif(CC is None or HERE.libc != "glibc", reason="needs cc, and glibc")
async def test_cudas_libraries_travel_once_and_the_next_runtime_has_the_same_files(
    bed: Testbed, tmp_path: Path
) -> None:
    hashes = {part.sha256 for part in _provide_cuda(bed, tmp_path)}
    h100, h200 = (Gpu("nvidia", "H", compute=(9, 0)),), (Gpu("nvidia", "H", compute=(9, 0)), *NVIDIA)
    ready = await bed.ensure(bed.probe(gpus=h100, cuda=(13, 0)))
    assert ready.backend == "cuda"
    assert {path.name for path in Path(ready.runtime).glob("libraries/*")} == hashes
    files = sorted(Path(ready.runtime).glob("libraries/*/*"))
    assert sorted(path.read_bytes() for path in files) == [b"blas", b"rt"]

    known = Path(ready.runtime).rename(bed.home / "runtimes" / ("0" * 16))  # one of an earlier lock
    shutil.rmtree(bed.home / "runtimes/wheels")
    again = await bed.ensure(bed.probe(gpus=h200, cuda=(13, 0), libraries=frozenset(hashes)))
    linked = sorted(Path(again.runtime).glob("libraries/*/*"))
    assert [path.stat().st_ino for path in linked] == [
        path.stat().st_ino for path in sorted(known.glob("libraries/*/*"))
    ]
    assert not list(bed.home.glob("runtimes/wheels/*/nvidia_*"))

    shutil.rmtree(known)
    shutil.rmtree(again.runtime)
    third = await bed.ensure(bed.probe(gpus=h100, cuda=(13, 0), libraries=frozenset(hashes)))  # no longer true
    assert len(list(Path(third.runtime).glob("libraries/*/*"))) == 2


@pytest.mark.skipif(CC is None or HERE.libc != "glibc", reason="needs cc, and glibc")
async def test_a_node_that_fetches_cudas_libraries_itself_is_sent_none_and_one_that_cannot_is(
    bed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, (context, trusted) = _provide_cuda(bed, tmp_path), server_context(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    h100, node = (Gpu("nvidia", "H", compute=(9, 0)),), Node("gpu1", "192.0.2.1")
    with serving(context) as server:
        found = [own_way.There(part.name, part.sha256, f"{server.url}/{part.name}") for part in parts]

        async def find(*_: object) -> list[own_way.There]:
            return found

        monkeypatch.setattr(own_way, "find", find)
        server.paths |= {f"/{part.name}": body(part.path.read_bytes()) for part in parts}
        ready = await bed.ensure(bed.probe(gpus=h100, cuda=(13, 0)), node)
        assert len(list(Path(ready.runtime).glob("libraries/*/*"))) == 2
        assert not list(bed.cache.root.glob("cuda13-*"))
        assert not [event for event in bed.events if isinstance(event, Notice) and "uploaded" in event.text]

        shutil.rmtree(bed.home / "runtimes")
        server.paths.clear()
        again = await bed.ensure(bed.probe(gpus=h100, cuda=(13, 0)), node)
        assert len(list(Path(again.runtime).glob("libraries/*/*"))) == 2
        assert list(bed.cache.root.glob("cuda13-*"))
        (said,) = [event.text for event in bed.events if isinstance(event, Notice) and "uploaded" in event.text]
        assert "HTTP Error 404" in said


async def test_a_node_with_its_own_toolkit_is_sent_none_of_its_libraries(bed: Testbed, tmp_path: Path) -> None:
    code = library(tmp_path, container("sm_90"), needs="libcudart.so.13").getvalue()
    bindings = {"llama_cpp/__init__.py": b"", "llama_cpp/llama_cpp.py": b"", "bin/libggml-cuda.so": code}
    llama = write_wheel(bed.index.folder, "llama_cpp_python", bindings, tag=LLAMA_TAG)
    bed.index.lock(requirements.LLAMA, llama)
    bed.cache.add_wheel(llama, "cuda")
    ready = await bed.ensure(bed.probe(gpus=NVIDIA, cuda=(13, 0), cudart=frozenset({13})))
    assert ready.backend == "cuda"
    assert not (Path(ready.runtime) / "libraries").exists()


async def test_a_gpu_gets_the_wheel_for_it_from_an_index_and_the_cpu_where_that_does_not_keep_its_word(
    bed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real bindings, which are read here, cannot be imported without packages that this index has not.
    code = library(tmp_path, container("sm_90"), needs="libcudart.so.12").getvalue()
    wheel = make_wheel(tmp_path / "made", {"llama_cpp/importable.py": b"", "llama_cpp/lib/libggml-cuda.so": code})
    monkeypatch.setattr(node_scripts, "_BINDINGS", "llama_cpp.importable")
    bed.index.lock(requirements.LLAMA, wheel)
    bed.cache.add_wheel(wheel, "cpu")
    found = replace(Target.here(), cudart=frozenset({12}))
    monkeypatch.delenv("RBEE_WHEEL_INDEX")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("nvcc"):
        pytest.skip("this machine can build for CUDA")
    with serving() as server:
        index = WheelIndex(server.url, "cuda", (hashlib.sha256(wheel.read_bytes()).hexdigest(),))
        node = replace(LOCAL, wheel_indexes=(index,), wheel_index="off")
        probe = bed.probe(gpus=NVIDIA, cpu=found.cpu, cudart=found.cudart)
        assert (await bed.ensure(probe, node)).backend == "cpu"
        assert any(isinstance(event, Notice) and "HTTP Error 404" in event.text for event in bed.events)
        shutil.rmtree(bed.home)
        server.offer(wheel, backend="cuda")
        assert (await bed.ensure(bed.probe(gpus=NVIDIA, cudart=found.cudart, cpu=found.cpu), node)).backend == "cuda"
        (fetched,) = bed.cache.root.glob("llama/cuda-*")
        shutil.rmtree(fetched)
        bare = bed.probe(gpus=NVIDIA, cudart=found.cudart, cpu=found.cpu, runtimes=frozenset())
        gathered = await supplies.gather(bed.session(node), bare)
        assert (gathered.backend, gathered.was_there) == ("cuda", False)
    again = bed.probe(gpus=NVIDIA, cudart=found.cudart, cpu=found.cpu)
    assert bootstrap.is_complete(bed.session(node), again, build_payload())


# --- with the real packages -----------------------------------------------------------------------------------------


@pytest.mark.model
async def test_the_real_runtime_reads_the_real_model(tmp_path: Path, model_path: Path) -> None:
    """Needs the package index, and a llama-cpp-python wheel in the shared cache (else it is built: minutes)."""
    from tests.testbed import assets

    home, settings = tmp_path / "node", Settings(home=tmp_path / "rbee")
    (settings.cache).mkdir(parents=True)
    (settings.cache / "wheels").symlink_to(assets.wheel_cache())
    context = Context(settings, Inventory({}), lambda: None, "0" * 16)  # type: ignore[arg-type, return-value]
    async with LocalConnection(keeper_id="0" * 16) as connection:
        bed = Testbed(home, None, context, connection, [])  # type: ignore[arg-type]
        ready = await bed.ensure()
        words = " ".join(f"'{word}'" for word in (*ready.command, "inspect", str(model_path)))
        answer = await connection.run(words)
    assert answer.status == 0, answer.stderr
    assert b'"architecture": "llama"' in answer.stdout
