"""Keepers and nodes for the benchmarks: the tests' testbed, without pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh

from tests.testbed import assets
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, KeyPair, start_node

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")

#: No configuration of this user's, no question asked.
NEUTRAL = (
    "-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
    "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
)  # fmt: skip
#: Plain OpenSSH, without a master.
SSH_OPTIONS = (*NEUTRAL, "-o", "ControlMaster=no")
#: As Ansible's own default, one connection to a host serves all tasks of a run (it is kept 60 s there).
ANSIBLE_SSH_OPTIONS = (*NEUTRAL, "-o", "ControlMaster=auto", "-o", "ControlPersist=10s")


@contextmanager
def keeper() -> Iterator[Rbee]:
    """A keeper with an empty home and the shared wheel cache."""
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder:
        home = Path(folder, "keeper")
        home.mkdir()
        Path(folder, "home").mkdir()
        run_dir = Path(folder, "run")
        run_dir.mkdir(mode=0o700)
        rbee = Rbee(home, run_dir, {"RBEE_WHEEL_CACHE": str(assets.wheel_cache())})
        try:
            yield rbee
        finally:
            for process in rbee.node_processes():
                process.kill()


@contextmanager
def node(key: KeyPair, *, image: str | None = None) -> Iterator[ContainerNode]:
    container, started = start_node(key, name="node", image=image, processors=None)
    try:
        yield started
    finally:
        container.stop()


@contextmanager
def key_pair() -> Iterator[KeyPair]:
    with tempfile.TemporaryDirectory(prefix="rbee-bench-key-") as folder:
        path = Path(folder, "id_ed25519")
        pair = asyncssh.generate_private_key("ssh-ed25519")
        pair.write_private_key(path)
        path.chmod(0o600)
        yield KeyPair(path, pair.export_public_key().decode().strip())


def ssh(target: ContainerNode, *words: str) -> list[str]:
    """The command line of OpenSSH's client for a node."""
    return [
        "ssh",
        *SSH_OPTIONS,
        "-i",
        str(target.key.private),
        "-p",
        str(target.port),
        f"{target.user}@{target.host}",
        *words,
    ]


def ansible_folder() -> Path:
    """`bin` of a virtual environment with ansible-core, made once in the cache."""
    folder = assets.cache_folder() / "ansible"
    if not (folder / "bin" / "ansible").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", "ansible-core>=2.16"], check=True)
    return folder / "bin"


def ansible_environment(folder: Path, *, pipelining: bool) -> dict[str, str]:
    """Ansible with connections kept, as it comes, and no host key questions. folder: for its control sockets.

    pipelining: modules travel through ssh's stdin instead of as files, which Ansible can but does not do by itself.
    """
    return dict(os.environ) | {
        "ANSIBLE_HOST_KEY_CHECKING": "False",
        "ANSIBLE_PIPELINING": str(pipelining),
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_SSH_ARGS": " ".join(ANSIBLE_SSH_OPTIONS),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder),
    }


def rbee_command() -> str:
    """The command as it is installed beside this Python."""
    return str(Path(sys.executable).with_name("rbee"))
