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
from dataclasses import dataclass, field
from typing import Any

from rbee.base.errors import NodeError
from rbee.base.events import Notice, Progress
from rbee.base.files import LocalFile
from rbee.base.retries import INSTALL_TIMEOUT_S
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup import prerequisites
from rbee.setup.base import bytecode, node_scripts
from rbee.setup.base.bundle import Bundle
from rbee.setup.base.make_runtime import LLAMA_FAILS
from rbee.setup.base.payload import Payload, build_compiled
from rbee.setup.base.platforms import Target
from rbee.setup.base.put_files import Named, Sendable, put_files
from rbee.setup.base.stoppable import alongside
from rbee.setup.foundation import FETCHING_PYTHON, Foundation
from rbee.setup.index.builders import Builders
from rbee.setup.runtime import Runtime, better, has_usable_python, say_how
from rbee.setup.supplies import Supplies
from rbee.setup.wheels.cache import WheelCache
from rbee_remote.protocol import ErrorCode

#: What can be done on a node while its first runtime is made. Given its home, which is there by then.
Meanwhile = Callable[[str], Coroutine[Any, Any, None]]


class Step(enum.Enum):
    """What a bootstrap may have to do; the value is what the user reads."""

    PYTHON = FETCHING_PYTHON
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
        work = _Bootstrap(payload, Supplies(session, probe, cache, builders, runtime))
        await work.supplies.ground.prepare()
        if meanwhile and Step.RUNTIME in steps and not probe.runtimes:
            await alongside(work.take(steps), meanwhile(probe.home))
        else:
            await work.take(steps)
    python = f"{probe.home}/runtimes/{runtime.key}/bin/python"
    code = f"{probe.home}/payloads/{payload.name}"
    return Ready(python, code, payload.digest, runtime.backend, runtime.target.text)


@dataclass(slots=True)
class _Bootstrap:
    """The steps at work on one node."""

    payload: Payload
    supplies: Supplies
    _again: bool = field(default=False, init=False)  # what the probe saw of libraries is not relied on
    _without: str = field(default="", init=False)  # the SHA-256 of a prebuilt llama.cpp that does not run there

    @property
    def _session(self) -> NodeSession:
        return self.supplies.session

    @property
    def _ground(self) -> Foundation:
        return self.supplies.ground

    async def take(self, steps: list[Step]) -> None:
        """Do them, the payload beside the others."""
        if Step.PAYLOAD in steps and len(steps) > 1:
            await alongside(self._take([step for step in steps if step is not Step.PAYLOAD]), self._upload_payload())
        else:
            await self._take(steps)

    async def _take(self, steps: list[Step]) -> None:
        place = self._ground.place
        files: list[Named] = []
        for step in steps:
            match step:
                case Step.PYTHON:
                    place = await self._ground.get_python()
                case Step.WHEELS:
                    files = await self._upload_wheels(place)
                case Step.RUNTIME:
                    await self._create_runtime(place, files)
                case Step.PAYLOAD:
                    await self._upload_payload()

    async def _upload_wheels(self, place: node_scripts.Place) -> list[Named]:
        """Everything of the runtime; only what is not there travels. Returns all of it."""
        supplies, probe = self.supplies, self.supplies.probe
        *packages, llama = await supplies.get_wheels(place, self._without)
        fetched = [] if self._again else await supplies.fetch_libraries(place, llama)
        libraries = [] if fetched else await supplies.get_libraries(llama)
        bundle = await asyncio.to_thread(_bundle, packages, supplies.runtime.target)
        wheels: list[Sendable] = [bundle, *libraries, llama]
        there = frozenset() if self._again else probe.libraries
        files = [(wheel, node_scripts.wheel_path(probe.home, wheel)) for wheel in wheels if wheel.sha256 not in there]
        await put_files(self._session.connection, files, key="wheels", text=Step.WHEELS.value, emit=self._session.emit)
        return [bundle, *libraries, *fetched, llama]

    async def _create_runtime(self, place: node_scripts.Place, files: list[Named]) -> None:
        try:
            await self._make_runtime(place, files)
        except NodeError as error:
            llama, failed = files[-1].sha256, error.details.get("status") == LLAMA_FAILS
            if error.code is ErrorCode.DISK_FULL:
                raise
            self._again = True
            if failed and await asyncio.to_thread(self.supplies.cache.is_prebuilt, llama):
                self._without = llama
                self._session.emit(Notice(f"{error.message}; that llama.cpp is a prebuilt one, so it is built instead"))
            else:
                self._session.emit(Notice(f"{error.message}; trying once more with everything sent again"))
                await self._ground.run(node_scripts.discard(place), "could not remove what may be damaged")
            await self._make_runtime(place, await self._upload_wheels(place))

    async def _make_runtime(self, place: node_scripts.Place, files: Sequence[Named]) -> None:
        self._session.emit(Progress("runtime", Step.RUNTIME.value, 0.0, None, "steps"))
        script = node_scripts.create_runtime(place, uuid.uuid4().hex[:12], self.supplies.runtime.key, files)
        await self._ground.run(script, "its runtime could not be made", INSTALL_TIMEOUT_S)

    async def _upload_payload(self) -> None:
        """With bytecode, where it is this rbee's own."""
        payload = await asyncio.to_thread(build_compiled)
        if payload.digest != self.payload.digest:
            payload = self.payload
        target = f"{self.supplies.probe.home}/payloads/{payload.name}"
        await self._session.connection.put(payload.data, target, sha256=payload.sha256)


def _bundle(packages: Sequence[LocalFile], target: Target) -> Bundle:
    """The packages as one file, with bytecode where the node's Python can use it."""
    return Bundle.of("packages.tar", [*packages, *bytecode.of_packages(packages, target.python)])
