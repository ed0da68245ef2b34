"""`rbee nodes ping` of 50 nodes, against plain asyncssh and against Ansible. This machine's sshd plays all nodes."""

from __future__ import annotations

import asyncio
import getpass
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncssh

from benchmarks.harness import Comparison, command, compare, in_turn
from benchmarks.testbed import ansible_environment, ansible_folder, keeper, key_pair, rbee_command
from tests.testbed.node import KeyPair, until_sshd_answers

NODES = 50
PORT = 22022
#: OpenSSH listens on 16 sockets at most (MAX_LISTEN_SOCKS); a process serves that many addresses.
PER_SSHD = 16
ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, NODES + 1))


def measure() -> list[Comparison]:
    with key_pair() as key, keeper() as rbee, sshd(key) as fingerprint, tempfile.TemporaryDirectory() as folder:
        rbee.inventory.write_text("\n".join(_table(address, key, fingerprint) for address in ADDRESSES))
        hosts = Path(folder, "hosts")
        hosts.write_text("".join(_ansible_host(address, key) for address in ADDRESSES))
        words: list[str | Path] = [ansible_folder() / "ansible", "all", "-i", hosts, "-m", "ping", "-f", str(NODES)]
        samples = in_turn(
            {
                "asyncssh": lambda: asyncio.run(_gather(key)),
                "rbee": command(rbee_command(), "nodes", "ping", env=rbee.environment()),
                "ansible -f 50": lambda: _without_kept_connections(words),
            }
        )
    return [
        compare(f"rbee nodes ping, {NODES} nodes", samples, "rbee", "asyncssh", goal=1.15),
        compare(f"rbee nodes ping, {NODES} nodes", samples, "rbee", "ansible -f 50", goal=0.12),
    ]


def _without_kept_connections(words: list[str | Path]) -> None:
    """Every round connects anew: a folder for control sockets that no round before it has used."""
    with tempfile.TemporaryDirectory() as sockets:
        command(*words, env=ansible_environment(Path(sockets), pipelining=False))()


async def _gather(key: KeyPair) -> None:
    """What asyncssh alone takes for the same: connect to all at once, run `true`."""

    async def one(address: str) -> None:
        options = {"client_keys": [str(key.private)], "known_hosts": None, "config": None}
        async with asyncssh.connect(address, PORT, username=getpass.getuser(), **options) as connection:
            await connection.run("true", check=True)

    await asyncio.gather(*map(one, ADDRESSES))


@contextmanager
def sshd(key: KeyPair, **settings: object) -> Iterator[str]:
    """sshd on all addresses; yields the fingerprint of its host key. settings: further ones of its configuration."""
    with tempfile.TemporaryDirectory(prefix="rbee-bench-sshd-") as folder:
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        path = Path(folder, "host_key")
        host_key.write_private_key(path)
        path.chmod(0o600)
        authorized = Path(folder, "authorized_keys")
        authorized.write_text(key.public + "\n")
        options = {
            "HostKey": path,
            "AuthorizedKeysFile": authorized,
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "MaxStartups": 500,
            "UseDNS": "no",
            "Port": PORT,
            "PidFile": "none",
            **settings,
        }
        common = [f"{name} {value}" for name, value in options.items()]
        Path("/run/sshd").mkdir(exist_ok=True)
        with ExitStack() as servers:
            for start in range(0, NODES, PER_SSHD):
                group = ADDRESSES[start : start + PER_SSHD]
                config = Path(folder, f"sshd_config.{group[0]}")
                config.write_text("\n".join([*common, *(f"ListenAddress {address}" for address in group)]) + "\n")
                servers.enter_context(_process("/usr/sbin/sshd", "-D", "-f", config))
                until_sshd_answers(group[-1], PORT)
            yield host_key.get_fingerprint("sha256")


@contextmanager
def _process(*words: str | Path) -> Iterator[None]:
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _table(address: str, key: KeyPair, fingerprint: str) -> str:
    name = address.replace(".", "-")
    return (
        f'[nodes.n{name}]\nhost = "{address}"\nport = {PORT}\nuser = "{getpass.getuser()}"\n'
        f'identity_file = "{key.private}"\nhost_key = "{fingerprint}"\n'
    )


def _ansible_host(address: str, key: KeyPair) -> str:
    return (
        f"{address} ansible_port={PORT} ansible_user={getpass.getuser()} ansible_ssh_private_key_file={key.private}\n"
    )
