"""What all else on a node stands on: its folder, uv, and a Python."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, replace

from rbee.base.errors import NodeError
from rbee.base.events import Progress
from rbee.base.files import LocalFile
from rbee.base.retries import INSTALL_TIMEOUT_S, PYTHON_TIMEOUT_S
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup import interpreter, prerequisites
from rbee.setup.base import node_scripts
from rbee.setup.base.platforms import Target
from rbee.setup.base.put_files import put_files
from rbee.setup.runtime import OWN_PYTHON, has_usable_python
from rbee.setup.wheels.locked import LockedWheels, uv_version
from rbee_remote.protocol import OLDEST_PYTHON, ErrorCode

FETCHING_PYTHON = "fetching a Python with uv"


@dataclass(frozen=True, slots=True)
class Foundation:
    """target, backend: of the runtime that the node is to have."""

    session: NodeSession
    probe: Probe
    cache: LockedWheels
    target: Target
    backend: str

    @property
    def place(self) -> node_scripts.Place:
        home = self.probe.home
        return node_scripts.Place(home, f"{home}/runtimes/uv-{uv_version()}", self.probe.python)

    async def prepare(self) -> None:
        """The node's folders, and no leftovers of bootstraps that ended long ago."""
        await self.run(node_scripts.prepare(self.probe.home), "could not prepare its folder")

    async def upload_uv(self) -> None:
        """For what cannot be done without: a Python is fetched, or llama.cpp compiled."""
        binary = await self.cache.uv_binary(self.target, self.session.emit)
        files = [(await asyncio.to_thread(LocalFile.of, binary), self.place.uv)]
        emit = self.session.emit
        await put_files(self.session.connection, files, key="uv", text="uploading uv", emit=emit, mode=0o700)

    async def get_python(self) -> node_scripts.Place:
        """Where the node has what its runtimes are made with, once it has a Python, brought or fetched.

        Raises NodeError NODE_UNSUPPORTED.
        """
        if has_usable_python(self.probe):
            return self.place
        brought = interpreter.for_node(self.target)
        python = await (self._upload_python(brought) if brought else self._fetch_python())
        return replace(self.place, python=python)

    async def _upload_python(self, brought: interpreter.Interpreter) -> str:
        """The keeper's own Python, below our home. Returns its path."""
        archive = await asyncio.to_thread(brought.archive, self.session.context.settings)
        there = node_scripts.wheel_path(self.probe.home, archive)
        text = "uploading a Python"
        await put_files(self.session.connection, [(archive, there)], key="python", text=text, emit=self.session.emit)
        script = node_scripts.unpack_python(self.place, uuid.uuid4().hex[:12], brought.name, there)
        await self.run(script, "the Python that was sent could not be unpacked")
        return node_scripts.python_path(self.place, brought.name)

    async def _fetch_python(self) -> str:
        """A Python by uv, below our home. Returns its path; raises NodeError NODE_UNSUPPORTED when there is no way."""
        await self.upload_uv()
        self.session.emit(Progress("python", FETCHING_PYTHON, 0.0, None, "steps"))
        version = ".".join(map(str, OWN_PYTHON))
        script = node_scripts.fetch_python(self.place, version, PYTHON_TIMEOUT_S)
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

    async def run(self, script: str, failure: str, timeout_s: float = INSTALL_TIMEOUT_S) -> None:
        """Run a step's script. Raises NodeError with the last line of what it said."""
        result = await self.session.connection.run(script, timeout=timeout_s)
        if result.status == 0:
            return
        said = [line.strip() for line in (result.stderr or result.stdout.decode(errors="replace")).splitlines()]
        said = [line for line in said if line]
        if any("no space left" in line.lower() or "quota exceeded" in line.lower() for line in said):
            raise prerequisites.disk_full(await self.session.probe(), self.backend)
        raise NodeError(
            ErrorCode.BOOTSTRAP_FAILED,
            f"{self.session.node.name}: {failure}: {said[-1][:300] if said else f'status {result.status}'}",
            hint=f"`rbee nodes check {self.session.node.name}` looks for the cause",
            details={"status": result.status, "stderr": "\n".join(said[-12:])},
        )
