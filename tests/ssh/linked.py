"""A keeper with a warm worker behind sshd: `rbee infer` as a process of its own, over the link and directly."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from rbee.link.client import ask
from rbee.registry import Registry
from rbee_remote.protocol import WorkerInfo, WorkerOptions, WorkerState
from tests.patience import PATIENCE_S
from tests.ssh import scripted_worker
from tests.ssh.servers import Server, openssh_server

MODEL = "smollm2:135m"
SECRET = "s" * 32
#: PYTHONPATH of a command for which the link's own limits hold, as for a user's. Others have all the time they need.
HURRIED = os.pathsep.join(sys.path)
_UNHURRIED = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("unhurried")), *sys.path])}


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str
    status: int
    seconds: float


@dataclass
class Keeper:
    """home: rbee's. worker: the process behind the node's sshd."""

    folder: Path
    server: Server
    worker: asyncio.subprocess.Process
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "keeper"

    @property
    def socket(self) -> Path:
        return self.home / "link" / "link.sock"

    @asynccontextmanager
    async def start(self, *words: str, link: str = "auto", **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rbee", *words,
            stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.folder, env=self.environment(link) | env,
        )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def __call__(self, *words: str, link: str = "auto", stdin: bytes = b"", **env: str) -> Done:
        """Run to the end. link: `$RBEE_LINK`."""
        began = time.monotonic()
        async with self.start(*words, link=link, **env) as process, asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate(stdin)
            assert process.returncode is not None
            return Done(out.decode(), err.decode(), process.returncode, time.monotonic() - began)

    def environment(self, link: str) -> dict[str, str]:
        """A command takes the link if it is there, however busy the machine."""
        own = {"RBEE_HOME": str(self.home), "RBEE_LINK": link}
        return {**os.environ, **own, **_UNHURRIED, **self.env}

    async def hold(self) -> int:
        """Leave a holder behind, and wait until it holds the node; its process id."""
        done = await self("infer", "--raw", "--node", "gpu1", "1", link="on")
        assert (done.status, done.stdout) == (0, answer("1")), done.stderr
        await until(self.holds)
        found = self.status()
        assert found is not None
        return int(found["pid"])

    def holds(self, node: str = "gpu1") -> bool:
        """Whether the link of this home can take a command for a node."""
        return node in (held["node"] for held in (self.status() or {}).get("held", ()))

    def status(self) -> dict[str, Any] | None:
        """What the link of this home says of itself."""
        before = os.environ.get("RBEE_HOME")
        os.environ["RBEE_HOME"] = str(self.home)
        try:
            return (ask("status", PATIENCE_S) or {}).get("status")
        finally:
            os.environ.pop("RBEE_HOME")
            if before is not None:
                os.environ["RBEE_HOME"] = before


def answer(prompt: str) -> str:
    """What the scripted worker answers."""
    return scripted_worker.answer(prompt).decode()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def keeper_with_worker(user_key: asyncssh.SSHKey, identity: Path) -> AsyncIterator[Keeper]:
    folder = Path(tempfile.mkdtemp(prefix="rbee-test-", dir="/tmp"))
    (folder / "keeper").mkdir(mode=0o700)
    socket = folder / "w.sock"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, scripted_worker.__file__, str(socket), SECRET, env=environment
    )
    try:
        async with openssh_server(folder, user_key, "LogLevel QUIET", "MaxStartups 200") as server:
            keeper = Keeper(folder, server, worker)
            write_inventory(keeper, identity)
            await until(socket.exists)
            remember_worker(keeper, socket)
            try:
                yield keeper
            finally:
                await _end(keeper)
    finally:
        if worker.returncode is None:
            worker.terminate()
        await worker.wait()
        shutil.rmtree(folder)


def write_inventory(keeper: Keeper, identity: Path, **keys: str) -> None:
    node = keeper.server.node(identity)
    table = f'[nodes.gpu1]\nhost = "{node.host}"\nport = {node.port}\nuser = "{node.user}"\n'
    table += f'identity_file = "{identity}"\nhost_key = "{node.host_key}"\nmodel = "{MODEL}"\n'
    defaults = "".join(f"{key} = {value}\n" for key, value in keys.items())
    (keeper.home / "inventory.toml").write_text(f"[defaults]\n{defaults}{table}")


def remember_worker(keeper: Keeper, socket: Path) -> None:
    """As if the hive had told of the worker a moment ago."""
    info = WorkerInfo(
        id=scripted_worker.WORKER_ID, model=MODEL, state=WorkerState.IDLE, backend="cpu", device="cpu",
        socket=str(socket), pid=keeper.worker.pid, start_ticks=0, boot_id="", ctx=20_000, slots=8, slots_free=8,
        keep_alive_s=-1.0, created_at=time.time(), options=WorkerOptions(), secret=SECRET,
    )  # fmt: skip
    with Registry.open(keeper.home / "workers.db") as registry:
        registry.upsert_worker("gpu1", info)


async def _end(keeper: Keeper) -> None:
    """Nothing may be left of a holder."""
    found = keeper.status()
    await keeper("link", "stop")
    if found is not None:
        try:
            await until(lambda: not is_running(int(found["pid"])))
        except TimeoutError:
            os.kill(int(found["pid"]), signal.SIGKILL)
            raise
