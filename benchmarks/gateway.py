"""`rbee serve` as a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.testbed.cli import Rbee

STOP_S = 60


@dataclass(frozen=True, slots=True)
class Gateway:
    """address: a URL without a path."""

    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def gateway(rbee: Rbee, nodes: str) -> Iterator[Gateway]:
    """A keeper's gateway before `nodes`, ended with the block, however that ends."""
    listen = f"127.0.0.1:{free_port()}"
    with rbee.start("serve", "--listen", listen, "--nodes", nodes) as running:
        try:
            running.wait_for(listen, stream="stdout")
            yield Gateway(f"http://{listen}", running.process)
        finally:
            running.process.send_signal(signal.SIGTERM)
            running.finish(STOP_S)


def free_port() -> int:
    """Of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
