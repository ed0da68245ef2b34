"""SSH servers to connect to: asyncssh's in this process with a login shell of choice, OpenSSH's and dropbear as
children."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import asyncssh

from rbee.inventory import Node
from tests.patience import PATIENCE_S

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
SSHD = shutil.which("sshd", path=_PATH)
DROPBEAR = shutil.which("dropbear", path=_PATH)


@dataclass
class Server:
    """Where a server listens, and what it saw."""

    port: int
    host_keys: list[str]
    user: str = "bee"
    host: str = "127.0.0.1"
    logins: list[str] = field(default_factory=list)
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    tunnels: list[tuple[str, int]] = field(default_factory=list)
    shells: set[int] = field(default_factory=set)
    acceptor: asyncssh.SSHAcceptor | None = None

    def show(self, key: asyncssh.SSHKey) -> None:
        """From now on this is the only host key."""
        assert self.acceptor is not None
        self.acceptor.update(server_host_keys=[key], server_host_certs=[])

    def node(self, identity: Path | None, **settings: object) -> Node:
        """A node of an inventory that pins the server's first host key, unless told otherwise."""
        values: dict[str, object] = {
            "name": "gpu1",
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "identity_file": identity,
            "host_key": self.host_keys[0],
        }
        return Node(**(values | settings))  # type: ignore[arg-type]


class _Login(asyncssh.SSHServer):
    def __init__(self, server: Server, *, sockets: bool, tunnels: bool) -> None:
        self._server = server
        self._sockets = sockets
        self._tunnels = tunnels

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        self._server.logins.append(username)
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        return self._sockets or _forbidden()

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        self._server.tunnels.append((dest_host, dest_port))
        return self._tunnels or _forbidden()


def _forbidden() -> NoReturn:
    raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "forwarding is forbidden")


@asynccontextmanager
async def asyncssh_server(
    authorized: Sequence[asyncssh.SSHKey],
    *,
    shell: Sequence[str] = ("/bin/sh",),
    env: dict[str, str] | None = None,
    host_keys: Sequence[asyncssh.SSHKey] | None = None,
    sockets: bool = True,
    tunnels: bool = True,
    certificates: Sequence[asyncssh.SSHCertificate] = (),
) -> AsyncIterator[Server]:
    """A server that runs `shell -c COMMAND` for everybody who has one of the keys. sockets, tunnels: forwarding."""

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _login_shell(server, process, [*shell, "-c", process.command or ""], {**os.environ, **(env or {})})

    keys = list(host_keys or [asyncssh.generate_private_key("ssh-ed25519")])
    server = Server(0, [key.get_fingerprint() for key in keys])
    acceptor = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: _Login(server, sockets=sockets, tunnels=tunnels),
        server_host_keys=keys,
        server_host_certs=list(certificates),
        authorized_client_keys=asyncssh.import_authorized_keys(
            "".join(key.export_public_key().decode() for key in authorized)
        ),
        process_factory=run,
        encoding=None,
    )
    server.port, server.acceptor = acceptor.get_port(), acceptor
    try:
        yield server
    finally:
        acceptor.close()
        for connection in server.connections:
            connection.abort()
        for pid in server.shells:  # those that do not notice the end of their stdin
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        await acceptor.wait_closed()


async def _login_shell(
    server: Server, process: asyncssh.SSHServerProcess[bytes], command: Sequence[str], environment: dict[str, str]
) -> None:
    """Run a command for a channel, as sshd does: what ends it when the channel closes is the end of its stdin."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env=environment
    )
    server.shells.add(child.pid)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(_pump(process.stdin, child.stdin))
    try:
        await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        status = await child.wait()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
    finally:
        feeding.cancel()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
        server.shells.discard(child.pid)
        process.close()


async def _pump(source: Any, sink: Any) -> None:
    with suppress(asyncssh.Error, OSError, asyncssh.BreakReceived, asyncssh.SignalReceived):
        while data := await source.read(2**16):
            sink.write(data)
            await sink.drain()
    if isinstance(sink, asyncio.StreamWriter):
        sink.close()
    else:  # whoever writes to a channel that is gone must not wait for room
        with suppress(asyncssh.Error, OSError):
            while await source.read(2**16):
                pass


@asynccontextmanager
async def openssh_server(folder: Path, authorized: asyncssh.SSHKey, *settings: str) -> AsyncIterator[Server]:
    """OpenSSH's sshd for the user who runs the tests. settings: lines of its configuration."""
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    host_key.write_private_key(folder / "host_key")
    (folder / "host_key").chmod(0o600)
    authorized.write_public_key(folder / "authorized_keys")
    port, child = await _started(folder, settings)
    try:
        yield Server(port, [host_key.get_fingerprint()], user=_me())
    finally:
        child.terminate()
        await child.wait()


async def _started(folder: Path, settings: Sequence[str]) -> tuple[int, asyncio.subprocess.Process]:
    """sshd, once it listens, and where: it ends if somebody else was faster to take the port, and gets another."""
    assert SSHD is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    pid_file = folder / "sshd.pid"
    async with asyncio.timeout(PATIENCE_S):
        while True:
            port = _free_port()
            (folder / "sshd_config").write_text(_configuration(folder, port, settings))
            child = await asyncio.create_subprocess_exec(SSHD, "-D", "-e", "-f", f"{folder}/sshd_config")
            while child.returncode is None:
                if pid_file.exists():  # written by who listens
                    return port, child
                await asyncio.sleep(0.02)


def _configuration(folder: Path, port: int, settings: Sequence[str]) -> str:
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/sshd.pid",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin yes",
        "LogLevel ERROR",
        *settings,
        f"SetEnv {_own_folders()}",  # the user database names the user's own home
    ]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def dropbear_server(folder: Path, authorized: asyncssh.SSHKey, *options: str) -> AsyncIterator[Server]:
    """dropbear for the user who runs the tests. It takes keys from the user's home alone; so it sees another list of
    users, in which that home is `folder`.
    """
    assert DROPBEAR is not None
    key = folder / "host_key"
    await _run("dropbearkey", "-t", "ed25519", "-f", str(key))
    public = (await _run("dropbearkey", "-y", "-f", str(key))).splitlines()[1]
    (folder / ".ssh").mkdir(mode=0o700)
    authorized.write_public_key(folder / ".ssh" / "authorized_keys")
    (folder / ".ssh" / "authorized_keys").chmod(0o600)
    folder.chmod(0o700)
    me, users = pwd.getpwuid(os.getuid()), folder / "passwd"
    users.write_text(f"{me.pw_name}:x:{me.pw_uid}:{me.pw_gid}::{folder}:/bin/sh\n")
    port = _free_port()
    command = [DROPBEAR, "-F", "-E", "-r", str(key), "-p", f"127.0.0.1:{port}", *options]
    child = await asyncio.create_subprocess_exec(
        *with_mounts('mount --bind "$0" /etc/passwd && exec "$@"', str(users), *as_myself(), *command),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _listening(port)
        yield Server(port, [asyncssh.import_public_key(public).get_fingerprint()], user=me.pw_name)
    finally:
        child.terminate()
        await child.wait()


def with_mounts(script: str, *arguments: str) -> list[str]:
    """A command that runs a shell script which may mount things for itself, as the superuser of what it sees."""
    whose = ("--mount",) if os.geteuid() == 0 else ("--mount", "--user", "--map-root-user")
    return ["unshare", *whose, "sh", "-c", script, *arguments]


def as_myself() -> list[str]:
    """What a command needs in front of it in such a script to run as the user who runs the tests."""
    if os.geteuid() == 0:
        return []
    return ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]


async def _run(*command: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await child.communicate()
    assert child.returncode == 0, command
    return said.decode()


def _own_folders() -> str:
    names = [name for name in ("HOME", "XDG_RUNTIME_DIR") if name in os.environ]
    return " ".join(f"{name}={os.environ[name]}" for name in names)


def _me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def _listening(port: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return
