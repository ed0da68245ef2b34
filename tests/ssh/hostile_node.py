"""An SSH server that runs nothing: a test says what its shells print and what its sockets answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from rbee.inventory import Node
from rbee.node.probe import parse
from rbee.setup.base.payload import build_payload
from rbee.setup.runtime import Runtime
from rbee.setup.wheels.cache import WheelCache
from tests.hostile import MESSAGES, PROBE, answer
from tests.ssh.servers import Server

Process = asyncssh.SSHServerProcess[bytes]
#: Answers a script: (its process, its nonce, its text).
Shell = Callable[[Process, str, str], Awaitable[None]]
#: Answers a request of a socket: its first line, such as "GET /v1/health HTTP/1.1".
Serve = Callable[[str], bytes]


def probe_answer() -> bytes:
    """Of a node that lacks nothing, and whose hive runs."""
    text = PROBE.format(payload=build_payload().digest, runtime="{runtime}", run_name="{run_name}").replace(
        "nvidia=", "_="
    )
    found = parse(text.encode())
    cache = WheelCache(Path("/nowhere"), Path("/nowhere"))
    runtime = Runtime.choose(found, Node(name="n", host="h", backend="cpu"), cache).key
    return text.format(runtime=runtime, run_name=found.run_dir.rpartition("/")[2]).encode()


async def between_markers(process: Process, nonce: str, said: bytes, status: int = 0) -> None:
    """What a faithful shell prints around an answer."""
    process.stdout.write(f"rbee-begin:{nonce}\n".encode() + said)
    process.stderr.write(f"rbee-end:{nonce}\n".encode())
    process.stdout.write(f"rbee-end:{nonce}:{status}\n".encode())


async def faithful(process: Process, nonce: str, script: str) -> None:
    """Says of itself what `probe_answer` has, and prints a log; every other script does nothing."""
    said = probe_answer() if "home_wanted" in script else b"found\nline 1\nline 2\n" if "tail -n" in script else b""
    await between_markers(process, nonce, said)


def hive_and_worker(request: str) -> bytes:
    """Valid answers to all that a keeper asks."""
    routes = {
        "GET /v1/workers/": "worker",
        "GET /v1/workers": "workers",
        "POST /v1/workers": "worker",
        "DELETE /v1/workers": "worker",
        "GET /v1/models/elsewhere": "elsewhere",
        "GET /v1/models": "models",
        "POST /v1/preflight": "fit",
        "POST /v1/models/needs": "needs",
        "POST /v1/inference": "answer",
        "POST /v1/stop": "hive",
    }
    message = next((name for start, name in routes.items() if request.startswith(start)), "hive")
    said = MESSAGES[message]
    return answer(said | {"payload": build_payload().digest} if message == "hive" else said)


@dataclass
class _Hostile(asyncssh.SSHServer):
    serve: Serve

    def begin_auth(self, username: str) -> bool:
        return True

    def unix_connection_requested(self, dest_path: str) -> Any:
        async def handle(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
            with suppress(asyncssh.Error, OSError):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self.serve(head.split(b"\r\n")[0].decode()))
                await writer.drain()
                writer.write_eof()
            writer.close()

        return handle


@asynccontextmanager
async def hostile_node(
    key: asyncssh.SSHKey, *, shell: Shell = faithful, serve: Serve = hive_and_worker, banner: str = ""
) -> AsyncIterator[Server]:
    """A node for whoever has the key."""

    async def run(process: Process) -> None:
        with suppress(asyncssh.Error, OSError, BrokenPipeError):
            script = b""
            while not re.search(rb"rbee-begin [0-9a-f]{32}\n(?s:.*)\n}\n$", script):
                if not (data := await process.stdin.read(2**16)):
                    break
                script += data
            nonce = re.search(rb"rbee-begin ([0-9a-f]{32})", script)
            await shell(process, nonce[1].decode() if nonce else "", script.decode())
        process.exit(0)

    host_key = asyncssh.generate_private_key("ssh-ed25519")
    server = Server(0, [host_key.get_fingerprint()])
    acceptor = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: _remembered(server, serve, banner),
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
        process_factory=run,
        encoding=None,
    )
    server.port = acceptor.get_port()
    try:
        yield server
    finally:
        acceptor.close()
        for connection in server.connections:
            connection.abort()
        await acceptor.wait_closed()
        await asyncio.sleep(0)


def _remembered(server: Server, serve: Serve, banner: str) -> asyncssh.SSHServer:
    class Login(_Hostile):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            server.connections.append(conn)
            if banner:
                conn.send_auth_banner(banner)

    return Login(serve)
