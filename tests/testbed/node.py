"""A node in a container: where it is reached, what runs on it, and what was left behind.

Containers are cut off: they have no default route, so the port published on 127.0.0.1 is all there is.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from testcontainers.core.container import DockerContainer

from tests.patience import patient
from tests.testbed import images

START_TIMEOUT_S = 30.0
#: Processors whose time a node has: with one, a worker computes with one thread. Several that meet a thousand times a
#: token, on processors that other tests use as well, take ten times as long for an answer.
PROCESSORS = 1.0
#: What rbee's processes on a node have in their command line.
MARK = "/payloads/"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An SSH key for the tests. private: path of the file that holds it. public: the line for authorized_keys."""

    private: Path
    public: str


class ContainerNode:
    """A running container with an sshd. host and port are reached from here; `name` is the node's in the inventory."""

    def __init__(self, container: DockerContainer, key: KeyPair, *, name: str, user: str) -> None:
        self._container = container
        self.key = key
        self.name = name
        self.user = user
        self.host = "127.0.0.1"
        self.port = int(container.get_exposed_port(22))

    @property
    def id(self) -> str:
        """The container's."""
        return str(self._container.get_wrapped_container().id)

    def exec(self, script: str, *, user: str = "root") -> str:
        """Run a shell script inside, past SSH; its stdout and stderr. Raises AssertionError when it fails."""
        status, output = self.try_exec(script, user=user)
        assert status == 0, f"{script!r} ended with {status}: {output}"
        return output

    def try_exec(self, script: str, *, user: str = "root") -> tuple[int, str]:
        result = self._container.get_wrapped_container().exec_run(["/bin/sh", "-c", script], user=user)
        return result.exit_code, result.output.decode(errors="replace")

    def keep_as(self, tag: str) -> None:
        """Make an image of what is in the container now."""
        repository, _, name = tag.partition(":")
        self._container.get_wrapped_container().commit(repository, name)

    def restart(self) -> None:
        """End all processes at once and start again, as after a power cut; files stay, the port may be another."""
        self._container.get_wrapped_container().restart(timeout=0)
        self.port = int(self._container.get_exposed_port(22))
        until_sshd_answers(self.host, self.port)

    def freeze(self) -> None:
        """Stop its sshd and all processes of its user where they are, as a machine that hangs."""
        self.try_exec(f"pkill -STOP -x sshd; pkill -STOP -u {self.user}")

    def thaw(self) -> None:
        self.try_exec(f"pkill -CONT -u {self.user}; pkill -CONT -x sshd")

    def put_archive(self, folder: str, tar: IO[bytes]) -> None:
        """Unpack a tar archive below `folder`, past SSH."""
        assert self._container.get_wrapped_container().put_archive(folder, tar)

    def inventory(self, **extra: str) -> str:
        """This node's table for an inventory. extra: further keys with their values as TOML."""
        keys = {
            "host": f'"{self.host}"',
            "port": str(self.port),
            "user": f'"{self.user}"',
            "identity_file": f'"{self.key.private}"',
            "host_key": f'"{self.fingerprint()}"',
            **extra,
        }
        return f"[nodes.{self.name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())

    def fingerprint(self) -> str:
        """SHA256:… of the host key, computed from the key itself."""
        blob = base64.b64decode(self.exec("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")

    def change_host_key(self) -> None:
        """What a reinstalled machine looks like: the same address with another host key."""
        key = "/etc/ssh/ssh_host_ed25519_key"
        self.exec(f"rm {key} {key}.pub && ssh-keygen -q -t ed25519 -N '' -f {key} && kill -HUP $(pgrep -o -x sshd)")
        until_sshd_answers(self.host, self.port)

    def processes(self) -> list[tuple[int, str]]:
        """(pid, command line) of every rbee process that runs inside."""
        _, output = self.try_exec("ps -ww -e -o pid=,stat=,args=")
        rows = (line.split(None, 2) for line in output.splitlines())
        return [(int(row[0]), row[2]) for row in rows if len(row) == 3 and MARK in row[2] and "Z" not in row[1]]

    def pids(self, command: str) -> list[int]:
        """Pids of rbee's processes for one command: hive, worker, download, …"""
        return [pid for pid, args in self.processes() if f".zip {command}" in args]

    def work_done(self, pid: int) -> str:
        """The processor time of a process in clock ticks, "" once it is gone: it grows while the process computes."""
        _, output = self.try_exec(f"cut -d' ' -f14,15 /proc/{pid}/stat 2>/dev/null")
        return output.strip()

    def sockets(self) -> list[str]:
        _, output = self.try_exec("find /tmp /run/user -type s 2>/dev/null")
        return [path for path in output.split() if "/rbee" in path]

    def listening_tcp(self) -> list[int]:
        """Ports on which anything inside listens, sshd's own left out."""
        output = self.exec("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true")
        rows = [line.split() for line in output.splitlines() if ":" in line]
        ports = {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A"}
        return sorted(ports - {22})

    def files(self, folder: str) -> list[str]:
        """Every file below `folder`, relative to it; none where it does not exist."""
        _, output = self.try_exec(f"cd {folder} 2>/dev/null && find . -type f")
        return sorted(line.removeprefix("./") for line in output.splitlines())

    def assert_quiet(self, *, within_s: float = 30.0) -> None:
        """No process of rbee's is left, no socket, and nothing that listens."""
        wait_until(lambda: not self.processes(), within_s, lambda: f"still running: {self.processes()}")
        assert self.sockets() == []
        assert self.listening_tcp() == []

    def end_all(self) -> None:
        """Kill whatever rbee left running, so that a failed test does not spoil the next one."""
        for pid, _ in self.processes():
            self.try_exec(f"kill -KILL {pid}")


def start_node(
    key: KeyPair,
    *,
    name: str = "gpu1",
    image: str | None = None,
    user: str = "bee",
    sshd: Sequence[str] = (),
    memory: str | None = None,
    tmpfs: Mapping[str, str] | None = None,
    volumes: Mapping[str, str] | None = None,
    processors: float | None = PROCESSORS,
) -> tuple[DockerContainer, ContainerNode]:
    """Start a container. image: a tag, `node_image()` unless told. sshd: options, each as `Name=value`.

    memory: limit as docker writes it, such as "200m". tmpfs: mount options by folder ("size=64m,mode=1777"; docker adds
    noexec unless it says exec). volumes: folders by the name of a docker volume. processors: None for all that there
    are. The caller stops the container. Raises NoTestbed where no image can be made.
    """
    container = DockerContainer(image or images.node_image())
    container.ports = {"22/tcp": ("127.0.0.1",)}  # docker's way to publish on loopback alone
    container.with_env("AUTHORIZED_KEY", key.public)
    container.with_command([word for option in sshd for word in ("-o", option)])
    limits: dict[str, Any] = {"mem_limit": memory, "memswap_limit": memory} if memory else {}
    if processors:
        limits["nano_cpus"] = int(processors * 1e9)
    for volume, folder in (volumes or {}).items():
        container.with_volume_mapping(volume, folder, "rw")
    container.tmpfs.update(tmpfs or {})
    container.with_kwargs(cap_add=["NET_ADMIN"], init=True, **limits)
    container.start()
    try:
        node = ContainerNode(container, key, name=name, user=user)
        until_sshd_answers(node.host, node.port)
    except BaseException:
        container.stop()
        raise
    return container, node


def wait_until(
    condition: Callable[[], object],
    timeout_s: float,
    describe: Callable[[], str],
    *,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Poll until `condition` holds; AssertionError with `describe()` when it never does.

    timeout_s: seconds that it takes at most on a machine with nothing else to do. progress: a value that changes while
    it is under way, and for as long as it does, the time begins anew.
    """
    known, deadline = progress(), time.monotonic() + patient(timeout_s)
    while not condition():
        if (now := progress()) != known:
            known, deadline = now, time.monotonic() + patient(timeout_s)
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)


def until_sshd_answers(host: str, port: int) -> None:
    wait_until(lambda: _banner(host, port).startswith(b"SSH-"), START_TIMEOUT_S, lambda: f"no sshd on port {port}")


def _banner(host: str, port: int) -> bytes:
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            return connection.recv(64)
    except OSError:
        return b""
