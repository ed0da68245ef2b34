"""The node of the steps: this machine again, behind an sshd on loopback that an ordinary user runs, from bare.

Rules
- Where this process is root, the user is one of its own, who can reach the GPU and nothing of root's.
- What the node has lies in that user's home and goes when the block ends.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from benchmarks.gpu.work import Work
from tests.testbed.cli import Rbee

USER = "rbee-gpu"
NAME = "gpu1"
START_S = 10.0


@dataclass(frozen=True, slots=True)
class GpuNode:
    """host_key: its fingerprint. home: of rbee on the node. folder: of sshd's files and of keepers."""

    port: int
    user: str
    host_key: str
    identity: Path
    home: Path
    folder: Path
    work: Work

    def inventory(self) -> str:
        return (
            f'[nodes.{NAME}]\nhost = "127.0.0.1"\nport = {self.port}\nuser = "{self.user}"\n'
            f'identity_file = "{self.identity}"\nhost_key = "{self.host_key}"\n'
            f'backend = "{self.work.backend}"\nhome = "{self.home}"\n'
            f'model = "file:{self.work.large}"\n'
        )

    @contextmanager
    def keeper(self, name: str = "keeper") -> Iterator[Rbee]:
        """A keeper that knows the node, with an empty home; the node's hive is stopped at the end."""
        base = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        for each in ("keeper", "home", "run"):
            (base / each).mkdir(mode=0o700)
        rbee = Rbee(base / "keeper", base / "run", self.work.environment())
        rbee.inventory.write_text(self.inventory())
        try:
            yield rbee
        finally:
            rbee("hive", "stop", NAME, status=None)


@contextmanager
def gpu_node(work: Work) -> Iterator[GpuNode]:
    """A bare node, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="rbee-gpu-", dir="/tmp"))
    folder.chmod(0o755)  # another user's sshd reads its files there
    user = _user()
    home = Path(tempfile.mkdtemp(prefix="node-", dir=folder))
    key = asyncssh.generate_private_key("ssh-ed25519")
    identity = folder / "id_ed25519"
    key.write_private_key(identity)
    identity.chmod(0o600)
    sshd, port, host_key = _start_sshd(folder, key, user, work)
    shutil.chown(home, user)
    try:
        yield GpuNode(port, user, host_key, identity, home, folder, work)
    finally:
        sshd.terminate()
        sshd.wait()
        work.keep_logs(folder / "sshd.log", home / "log")
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str:
    """Who the node's user is: this one, or where it is root one of its own, made if need be."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", USER], check=True)
    return USER


def _start_sshd(folder: Path, key: asyncssh.SSHKey, user: str, work: Work) -> tuple[subprocess.Popen[bytes], int, str]:
    """An sshd that `user` runs, once it listens; its port, and the fingerprint of its key. Raises RuntimeError."""
    files = folder / "sshd"
    files.mkdir()
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    host_key.write_private_key(files / "host_key")
    key.write_public_key(files / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (files / "config").write_text(_configuration(files, port))
    (files / "host_key").chmod(0o600)
    for path in (files, *files.iterdir()):
        shutil.chown(path, user)
    program, environment = _sshd(folder, work)
    words = [*_as(user), program, "-D", "-e", "-f", str(files / "config")]
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    deadline = time.monotonic() + START_S
    while not (files / "pid").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshd did not start: {(folder / 'sshd.log').read_text(errors='replace')[-1000:]}")
        time.sleep(0.05)
    return process, port, host_key.get_fingerprint()


def _sshd(folder: Path, work: Work) -> tuple[str, dict[str, str]]:
    """This machine's sshd, else the pack's, and the environment to start it with."""
    environment = {"PATH": os.environ["PATH"]}
    if found := shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin"):
        return found, environment
    place = folder / "openssh"
    with tarfile.open(work.pack / "sshd.tar.xz") as packed:
        packed.extractall(place, filter="data")
    return str(place / "sshd"), environment | {"LD_LIBRARY_PATH": str(place)}


def _as(user: str) -> list[str]:
    if os.geteuid() != 0:
        return []
    entry = pwd.getpwnam(user)
    groups = f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups"
    return ["setpriv", *groups, "--"]


def _visible() -> list[str]:
    """What a login shell of the machine would have; some images have the driver in no folder that the loader knows."""
    names = ("PATH", "LD_LIBRARY_PATH")
    return [f'"{name}={value}"' for name in names if (value := os.environ.get(name))]


def _configuration(files: Path, port: int) -> str:
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {files}/host_key",
        f"PidFile {files}/pid",
        f"AuthorizedKeysFile {files}/authorized_keys",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "MaxStartups 100",
        "LogLevel ERROR",
        f"SetEnv {' '.join(_visible())}",
    ]
    return "\n".join(lines) + "\n"
