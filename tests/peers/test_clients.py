"""Clients that people use, in their current versions, before `rbee serve` with the real model on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.peers import environments
from tests.testbed.cli import Rbee

pytestmark = pytest.mark.model

INVENTORY = """
[models.bee]
model = "smollm2:135m"
ctx = 2048
slots = 2
"""
#: A client's program, and the environment that has it.
PROGRAMS = {
    "openai_sdk": "clients",
    "anthropic_sdk": "clients",
    "litellm_sdk": "clients",
    "langchain_openai": "clients",
    "pydantic_agents": "clients",
    "llm_command": "clients",
    "instructor_modes": "instructor",
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """key: without limits. hasty_key: with a request a minute."""

    address: str
    key: str
    hasty_key: str


@pytest.fixture(scope="module")
def gateway(shared_rbee: Rbee) -> Iterator[Gateway]:
    rbee = shared_rbee
    rbee.inventory.write_text(INVENTORY)
    key, hasty = (
        rbee("keys", "add", name, "--json", *more).json()["key"]
        for name, more in (("clients", ()), ("hasty", ("--rpm", "1")))
    )
    rbee("infer", "--model", "bee", "--max-tokens", "1", "Hello")
    with rbee.start("serve", "--listen", "127.0.0.1:0") as running:
        yield Gateway(running.gateway(), key, hasty)
        running.process.send_signal(signal.SIGTERM)
        assert running.finish().status == 0, running.text("stderr")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_gets_what_it_asks_for(program: str, gateway: Gateway, tmp_path: Path) -> None:
    python = environments.python(PROGRAMS[program])
    words = [str(python), "-m", f"tests.peers.clients.{program}"]
    home = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [*words, gateway.address, "bee", gateway.key, gateway.hasty_key],
        cwd=environments.ROOT, env={**os.environ, **home}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) > 2, report
    assert not any(report.values()), "\n".join(f"{name}: {trace}" for name, trace in report.items() if trace)
