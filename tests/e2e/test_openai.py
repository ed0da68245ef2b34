"""What docs/how-to/openai-client.md shows: a worker's socket through OpenSSH, and a program that uses it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]

PAGE = (Path(__file__).parents[2] / "docs/how-to/openai-client.md").read_text(encoding="utf-8")
PROGRAM = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "OpenAI" in block)

COMMAND = next(block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "ssh -N" in block)


def test_the_program_that_is_shown_prints_an_answer(
    shared_rbee: Rbee, warm_node: ContainerNode, capsys: pytest.CaptureFixture[str]
) -> None:
    shared_rbee(
        "infer", "--node", "gpu1", "--model", "smollm2:135m", "--keep-alive", "1h", "--max-tokens", "1", "Hello"
    )
    (listed,) = shared_rbee("workers", "list", "gpu1", "--json").json()
    worker = shared_rbee("workers", "show", listed["id"][:4], "--json").json()
    with forwarded(warm_node, worker["socket"]) as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        exec(compile(PROGRAM, "openai-client.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 3


@contextmanager
def forwarded(node: ContainerNode, remote: str) -> Iterator[Path]:
    """A home here with the socket that the page's `ssh -L` takes to the one on the node."""
    shown = re.findall(r"-o|\w+=yes", COMMAND)
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as folder:
        local = Path(folder) / ".rbee" / "sockets" / "gpu1.sock"
        local.parent.mkdir(mode=0o700, parents=True)
        local.touch()  # what an `ssh` that was killed has left
        trust = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
        way = ["-F", "none", *trust, "-i", str(node.key.private), "-p", str(node.port), f"{node.user}@{node.host}"]
        tunnel = subprocess.Popen(["ssh", "-N", *shown, "-L", f"{local}:{remote}", *way], stderr=subprocess.DEVNULL)
        try:
            wait_until(local.is_socket, 20, lambda: "ssh has made no socket")
            yield Path(folder)
        finally:
            tunnel.terminate()
            tunnel.wait(PATIENCE_S)
