"""Makes a node ready: a runtime (a virtual environment with llama.cpp) and the payload, by the wheel cache.

Rules
- What to do is decided by `plan`, from what the probe saw; the steps act.
- What stands under its final name is whole: everything is staged beside it, verified, and renamed. So an interrupted
  bootstrap never looks like a finished one, and of two at once the second finds its work done.
- Nothing on the node reaches for the internet, except for CUDA's libraries (own_way.py), and for a Python where it has
  none and this keeper has none to bring.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Notice, Progress
from rbee.base.files import LocalFile
from rbee.base.retries import INSTALL_TIMEOUT_S, PYTHON_TIMEOUT_S
from rbee.inventory import Node
from rbee.node.probe import Probe
from rbee.node.session import NodeSession, open_session
from rbee.setup import elsewhere, interpreter, own_way, prerequisites
from rbee.setup.base import bytecode, cuda, node_scripts
from rbee.setup.base.bundle import Bundle
from rbee.setup.base.make_runtime import LLAMA_FAILS
from rbee.setup.base.payload import Payload, build_compiled, build_payload
from rbee.setup.base.platforms import Target
from rbee.setup.base.put_files import Named, Sendable, put_files
from rbee.setup.base.stoppable import alongside
from rbee.setup.index.builders import Builders
from rbee.setup.runtime import OWN_PYTHON, Runtime, better, has_usable_python, say_how
from rbee.setup.wheels import building, kept, portable, toolkit
from rbee.setup.wheels.cache import BuildOnNode, WheelCache, uv_version
from rbee.setup.wheels.node_build import NodeBuilder
from rbee_remote.protocol import OLDEST_PYTHON, ErrorCode

#: What can be done on a node while its first runtime is made. Given its home, which is there by then.
Meanwhile = Callable[[str], Coroutine[Any, Any, None]]


class Step(enum.Enum):
    """What a bootstrap may have to do; the value is what the user reads."""

    PYTHON = "fetching a Python with uv"
    WHEELS = "uploading wheels"
    RUNTIME = "creating the runtime"
    PAYLOAD = "uploading the payload"


@dataclass(frozen=True, slots=True)
class Ready:
    """A node that can run our commands. python, payload: absolute paths there. command: append a command's words.

    platform: the runtime's, as `Target.text` writes it.
    """

    python: str
    payload: str
    digest: str
    backend: str
    platform: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        return (self.python, "-I", self.payload)

    @property
    def runtime(self) -> str:
        """The folder of the runtime."""
        return self.python.removesuffix("/bin/python")


def plan(probe: Probe, payload_digest: str, runtime_key: str) -> list[Step]:
    """The steps that are missing, in order."""
    steps = []
    if runtime_key not in probe.runtimes:
        if not has_usable_python(probe):
            steps.append(Step.PYTHON)
        steps += [Step.WHEELS, Step.RUNTIME]
    if payload_digest not in probe.payloads:
        steps.append(Step.PAYLOAD)
    return steps


def is_complete(session: NodeSession, probe: Probe, payload: Payload, *, wait_for_gpu: bool = False) -> bool:
    """Whether `ensure` would find nothing to do; then it makes no round trip."""
    builders = Builders.of(session.node, session.context.inventory.nodes)
    cache = WheelCache.of(session.context.settings)
    runtime = Runtime.choose(probe, session.node, cache, builders, wait_for_gpu=wait_for_gpu)
    return not plan(probe, payload.digest, runtime.key)


async def ensure(
    session: NodeSession,
    probe: Probe,
    payload: Payload,
    meanwhile: Meanwhile | None = None,
    *,
    wait_for_gpu: bool = False,
) -> Ready:
    """Put on the node what is missing there, with progress. meanwhile: done while a first runtime is made; its errors
    are raised too. wait_for_gpu: as of `Runtime.choose`.

    Raises NodeError NODE_UNSUPPORTED, BOOTSTRAP_FAILED or DISK_FULL, and ConnectError. Safe to interrupt and to repeat.
    """
    cache = WheelCache.of(session.context.settings)
    builders = Builders.of(session.node, session.context.inventory.nodes)
    runtime = Runtime.choose(probe, session.node, cache, builders, wait_for_gpu=wait_for_gpu)
    steps = plan(probe, payload.digest, runtime.key)
    if steps:
        prerequisites.check(probe, runtime.backend, makes_runtime=Step.RUNTIME in steps)
        runtime = await better(runtime, session, probe, cache, builders)
        steps = plan(probe, payload.digest, runtime.key)
        prerequisites.check(probe, runtime.backend, makes_runtime=Step.RUNTIME in steps)
        if Step.RUNTIME in steps:
            say_how(runtime, session, probe, cache, builders)
        work = _Bootstrap(session, probe, payload, cache, builders, runtime)
        await work.prepare()
        if meanwhile and Step.RUNTIME in steps and not probe.runtimes:
            await alongside(work.take(steps), meanwhile(probe.home))
        else:
            await work.take(steps)
    python = f"{probe.home}/runtimes/{runtime.key}/bin/python"
    code = f"{probe.home}/payloads/{payload.name}"
    return Ready(python, code, payload.digest, runtime.backend, runtime.target.text)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a bootstrap of a node takes from the cache. packages: a folder. was_there: llama was neither built nor
    fetched now."""

    target: Target
    backend: str
    llama: LocalFile
    packages: Path
    uv: Path
    was_there: bool


async def gather(session: NodeSession, probe: Probe, along: Sequence[Target] = ()) -> Gathered:
    """Have in the cache all that a bootstrap of the node would take from there; one that has to build it, builds it.

    along: other machines that a build for CUDA is to serve too. Raises as `ensure`.
    """
    prerequisites.check_system(probe)
    cache = WheelCache.of(session.context.settings)
    builders = Builders.of(session.node, session.context.inventory.nodes)
    chosen = Runtime.choose(probe, session.node, cache, builders)
    runtime = await better(chosen, session, probe, cache, builders)
    if runtime is chosen and chosen.better:
        runtime = chosen = Runtime.choose(probe, session.node, cache, builders, wait_for_gpu=True)
    say_how(runtime, session, probe, cache, builders)
    work = _Bootstrap(session, probe, build_payload(), cache, builders, runtime)
    if runtime is chosen and runtime.backend == "cuda":
        work.serves = cuda.joined(runtime.target, along)
    was_there = runtime is chosen and cache.find_llama(work.serves, runtime.backend, builders) is not None
    *packages, llama = await work.get_wheels(None)
    await work.get_libraries(llama)
    uv = await cache.uv_binary(runtime.target, session.emit)
    return Gathered(runtime.target, runtime.backend, llama, packages[0].path.parent, uv, was_there)


@dataclass(slots=True)
class _Bootstrap:
    """The steps at work on one node."""

    session: NodeSession
    probe: Probe
    payload: Payload
    cache: WheelCache
    builders: Builders
    runtime: Runtime
    serves: Target = field(init=False)  # what a build of llama.cpp is made for: the runtime's platform, perhaps more
    _again: bool = field(default=False, init=False)  # what the probe saw of libraries is not relied on
    _without: str = field(default="", init=False)  # the SHA-256 of a prebuilt llama.cpp that does not run there

    def __post_init__(self) -> None:
        self.serves = self.runtime.target

    async def take(self, steps: list[Step]) -> node_scripts.Place:
        """Do them, the payload beside the others. Returns where the node has what its runtimes are made with."""
        if Step.PAYLOAD in steps and len(steps) > 1:
            return await alongside(
                self._take([step for step in steps if step is not Step.PAYLOAD]), self._upload_payload()
            )
        return await self._take(steps)

    async def _take(self, steps: list[Step]) -> node_scripts.Place:
        place = self._place
        files: list[Named] = []
        for step in steps:
            match step:
                case Step.PYTHON:
                    brought = interpreter.for_node(self.runtime.target)
                    python = await (self._upload_python(brought) if brought else self._fetch_python())
                    place = replace(place, python=python)
                case Step.WHEELS:
                    files = await self._upload_wheels(place)
                case Step.RUNTIME:
                    await self._create_runtime(place, files)
                case Step.PAYLOAD:
                    await self._upload_payload()
        return place

    @property
    def _place(self) -> node_scripts.Place:
        home = self.probe.home
        return node_scripts.Place(home, f"{home}/runtimes/uv-{uv_version()}", self.probe.python)

    async def prepare(self) -> None:
        """The node's folders, and no leftovers of bootstraps that ended long ago."""
        await self._run(node_scripts.prepare(self.probe.home), "could not prepare its folder")

    async def _upload_uv(self) -> None:
        """For what cannot be done without: a Python is fetched, or llama.cpp compiled."""
        binary = await self.cache.uv_binary(self.runtime.target, self.session.emit)
        files = [(await asyncio.to_thread(LocalFile.of, binary), self._place.uv)]
        emit = self.session.emit
        await put_files(self.session.connection, files, key="uv", text="uploading uv", emit=emit, mode=0o700)

    async def _upload_python(self, brought: interpreter.Interpreter) -> str:
        """The keeper's own Python, below our home. Returns its path."""
        archive = await asyncio.to_thread(brought.archive, self.session.context.settings)
        there = node_scripts.wheel_path(self.probe.home, archive)
        text = "uploading a Python"
        await put_files(self.session.connection, [(archive, there)], key="python", text=text, emit=self.session.emit)
        script = node_scripts.unpack_python(self._place, uuid.uuid4().hex[:12], brought.name, there)
        await self._run(script, "the Python that was sent could not be unpacked")
        return node_scripts.python_path(self._place, brought.name)

    async def _fetch_python(self) -> str:
        """A Python by uv, below our home. Returns its path; raises NodeError NODE_UNSUPPORTED when there is no way."""
        await self._upload_uv()
        self.session.emit(Progress("python", Step.PYTHON.value, 0.0, None, "steps"))
        version = ".".join(map(str, OWN_PYTHON))
        script = node_scripts.fetch_python(self._place, version, PYTHON_TIMEOUT_S)
        result = await self.session.connection.run(script, timeout=PYTHON_TIMEOUT_S + 10)
        path = result.stdout.decode(errors="replace").strip()
        if result.status == 0 and path.startswith("/") and path.isprintable():
            return path
        raise NodeError(
            ErrorCode.NODE_UNSUPPORTED,
            f"the node has no Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, and uv could not fetch one there",
            hint="install one on the node (apt install python3, dnf install python3, apk add python3)",
            details={"uv": result.stderr.strip()[-300:]},
        )

    async def _upload_wheels(self, place: node_scripts.Place) -> list[Named]:
        """Everything of the runtime; only what is not there travels. Returns all of it."""
        *packages, llama = await self.get_wheels(place)
        fetched = await self._fetch_libraries(place, llama)
        libraries = [] if fetched else await self.get_libraries(llama)
        bundle = await asyncio.to_thread(_bundle, packages, self.runtime.target)
        wheels: list[Sendable] = [bundle, *libraries, llama]
        there = frozenset() if self._again else self.probe.libraries
        files = [
            (wheel, node_scripts.wheel_path(self.probe.home, wheel)) for wheel in wheels if wheel.sha256 not in there
        ]
        await put_files(self.session.connection, files, key="wheels", text=Step.WHEELS.value, emit=self.session.emit)
        return [bundle, *libraries, *fetched, llama]

    async def get_wheels(self, place: node_scripts.Place | None) -> list[LocalFile]:
        """Everything of the runtime, in the cache, llama-cpp-python last.

        place: where the node can build; None has it made ready for that first, if it comes to it.
        """
        target, backend = self.serves, self.runtime.backend

        async def on_node(flags: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
            return await self._build(place, flags, folder, emit)

        async def choose(builds_here: bool) -> tuple[str, BuildOnNode] | None:
            session, root = self.session, self.cache.root
            other = await elsewhere.choose(session, self.probe, target, backend, root, builds_here=builds_here)
            if other is None:
                return None
            return Builders.of(other, session.context.inventory.nodes).own, partial(self._build_on, other)

        llama = await self.cache.llama_wheel(
            target,
            backend,
            self.session.emit,
            on_node=on_node if self.probe.compiler else None,
            builders=self.builders,
            without=self._without,
            choose=choose,
        )
        return [*await self.cache.base_wheels(self.runtime.target, self.session.emit), llama]

    async def get_libraries(self, llama: LocalFile) -> list[LocalFile]:
        """In the cache: CUDA's that `llama` loads and the node has not installed."""
        line = await self._cuda_line(llama)
        return await self.cache.cuda_libraries(line, self.runtime.target, self.session.emit) if line else []

    async def _fetch_libraries(self, place: node_scripts.Place, llama: LocalFile) -> Sequence[Named]:
        """On the node, which fetched them itself: as `get_libraries`, or none."""
        line = 0 if self.session.node.is_local or self._again else await self._cuda_line(llama)
        if not line:
            return []
        wanted, target = toolkit.libraries(line), toolkit.fetched_for(self.runtime.target)
        return await own_way.fetch(self.session, place, wanted, target, self.cache.root, self.probe.libraries)

    async def _cuda_line(self, llama: LocalFile) -> int:
        """The line of CUDA whose libraries `llama` loads and the node lacks, 0 for none."""
        line = await asyncio.to_thread(self.cache.cuda_line, llama.sha256)
        return line if line in cuda.brought(self.runtime.target) - self.probe.cudart else 0

    async def _build(
        self, place: node_scripts.Place | None, flags: str, folder: Path, emit: Emit
    ) -> tuple[Path, portable.FindLibrary]:
        """Compile on this node. place: as of `get_wheels`."""
        there = place or await self._ready_to_build()
        await self._upload_uv()
        log, name = self.cache.build_log(self.runtime.backend), self.session.node.name
        begun = kept.is_begun(folder)
        forecast = building.forecast(name, self.probe.cores, self.runtime.backend, is_begun=begun)
        builder = NodeBuilder(self.session.connection, name, there, log, self.cache, forecast)
        return await builder.build(self.runtime.target, flags, folder, emit)

    async def _build_on(self, other: Node, flags: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
        """Compile on another node for this one."""
        async with open_session(self.session.context, other) as session:
            probe = await session.probe()
            builders = Builders.of(other, session.context.inventory.nodes)
            runtime = Runtime.choose(probe, replace(other, backend=self.runtime.backend), self.cache, builders)
            target = replace(runtime.target, cuda=self.serves.cuda, gpus=self.serves.gpus)  # whose toolkit compiles
            runtime = replace(runtime, target=target)
            there = _Bootstrap(session, probe, self.payload, self.cache, builders, runtime)
            return await there._build(None, flags, folder, emit)

    async def _ready_to_build(self) -> node_scripts.Place:
        """Put on the node what a build there runs with."""
        steps = plan(replace(self.probe, runtimes=frozenset()), "", self.runtime.key)
        prerequisites.check(self.probe, self.runtime.backend, makes_runtime=Step.RUNTIME in steps)
        await self.prepare()
        return await self.take([step for step in steps if step is Step.PYTHON])

    async def _create_runtime(self, place: node_scripts.Place, files: list[Named]) -> None:
        try:
            await self._make_runtime(place, files)
        except NodeError as error:
            llama, failed = files[-1].sha256, error.details.get("status") == LLAMA_FAILS
            if error.code is ErrorCode.DISK_FULL:
                raise
            self._again = True
            if failed and await asyncio.to_thread(self.cache.is_prebuilt, llama):
                self._without = llama
                self.session.emit(Notice(f"{error.message}; that llama.cpp is a prebuilt one, so it is built instead"))
            else:
                self.session.emit(Notice(f"{error.message}; trying once more with everything sent again"))
                await self._run(node_scripts.discard(place), "could not remove what may be damaged")
            await self._make_runtime(place, await self._upload_wheels(place))

    async def _make_runtime(self, place: node_scripts.Place, files: Sequence[Named]) -> None:
        self.session.emit(Progress("runtime", Step.RUNTIME.value, 0.0, None, "steps"))
        script = node_scripts.create_runtime(place, uuid.uuid4().hex[:12], self.runtime.key, files)
        await self._run(script, "its runtime could not be made")

    async def _upload_payload(self) -> None:
        """With bytecode, where it is this rbee's own."""
        payload = await asyncio.to_thread(build_compiled)
        if payload.digest != self.payload.digest:
            payload = self.payload
        target = f"{self.probe.home}/payloads/{payload.name}"
        await self.session.connection.put(payload.data, target, sha256=payload.sha256)

    async def _run(self, script: str, failure: str) -> None:
        """Run a step's script. Raises NodeError with the last line of what it said."""
        result = await self.session.connection.run(script, timeout=INSTALL_TIMEOUT_S)
        if result.status == 0:
            return
        said = [line.strip() for line in (result.stderr or result.stdout.decode(errors="replace")).splitlines()]
        said = [line for line in said if line]
        if any("no space left" in line.lower() or "quota exceeded" in line.lower() for line in said):
            raise prerequisites.disk_full(await self.session.probe(), self.runtime.backend)
        raise NodeError(
            ErrorCode.BOOTSTRAP_FAILED,
            f"{self.session.node.name}: {failure}: {said[-1][:300] if said else f'status {result.status}'}",
            hint=f"`rbee nodes check {self.session.node.name}` looks for the cause",
            details={"status": result.status, "stderr": "\n".join(said[-12:])},
        )


def _bundle(packages: Sequence[LocalFile], target: Target) -> Bundle:
    """The packages as one file, with bytecode where the node's Python can use it."""
    return Bundle.of("packages.tar", [*packages, *bytecode.of_packages(packages, target.python)])
