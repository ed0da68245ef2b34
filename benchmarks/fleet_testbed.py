"""Nodes in containers with one image, which a keeper has set up, and a gateway before them."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.testbed import keeper, key_pair, node, ssh
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, start_node, wait_until

MODEL = "smollm2:135m"
IMAGE = "rbee-bench-node:warm"
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that runs, at `address`, an URL without a path. nodes: by name, each with a worker that is loaded."""

    rbee: Rbee
    nodes: dict[str, ContainerNode]
    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def served(count: int, *load: str) -> Iterator[Served]:
    """A gateway before `count` nodes. load: options of `infer` for each one's worker."""
    with key_pair() as key, keeper() as rbee, ExitStack() as stack:
        with node(key) as first:
            rbee.inventory.write_text(first.inventory())
            rbee("infer", "--node", "node", "--max-tokens", "1", "Hello")
            rbee("hive", "stop", "node")
            first.keep_as(IMAGE)
        nodes = {}
        for number in range(count):
            container, started = start_node(key, name=f"n{number}", image=IMAGE, processors=None)
            stack.callback(container.stop)
            nodes[started.name] = started
        rbee.inventory.write_text("\n".join(each.inventory(tags='["far"]') for each in nodes.values()))
        for name in nodes:
            rbee("infer", "--node", name, "--keep-alive", "never", "--max-tokens", "1", *load, "Hello")
        address, process = stack.enter_context(_gateway(rbee))
        yield Served(rbee, nodes, address, process)


@contextmanager
def _gateway(rbee: Rbee) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with rbee.start("serve", "--listen", address, "--nodes", "@far") as running:
        running.wait_for(address, stream="stdout")
        yield f"http://{address}", running.process
        running.process.send_signal(signal.SIGTERM)
        running.finish(60)


@contextmanager
def forwarded(served: Served, name: str) -> Iterator[Path]:
    """A socket here that OpenSSH takes to the worker's on a node."""
    (worker,) = served.rbee("workers", "list", name, "--json").json()
    remote = served.rbee("workers", "show", worker["id"], "--json").json()["socket"]
    with tempfile.TemporaryDirectory(prefix="rbee-bench-l-") as folder:
        local = Path(folder, "w.sock")
        *words, target = ssh(served.nodes[name])
        tunnel = subprocess.Popen([*words, "-N", "-L", f"{local}:{remote}", target])
        try:
            wait_until(local.is_socket, START_S, lambda: "ssh has made no socket")
            yield local
        finally:
            tunnel.terminate()
            tunnel.wait(10)
