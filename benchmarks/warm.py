"""A whole `rbee infer` of one token on a warm worker over SSH, against one `ssh node true` without a master: over a
connection that the command before left behind, and over one of its own."""

from __future__ import annotations

import time

from benchmarks.harness import Comparison, command, compare, in_turn
from benchmarks.testbed import keeper, key_pair, node, rbee_command, ssh
from tests.testbed.cli import Rbee

ROUNDS = 15
#: For the process that is left behind to hold its connection.
HELD_WITHIN_S = 30.0


def measure() -> list[Comparison]:
    with key_pair() as key, keeper() as rbee, node(key) as target:
        rbee.inventory.write_text(f'[defaults]\npersist = "10m"\n{target.inventory()}')
        words = ("infer", "--node", "node", "--max-tokens", "1", "Why is the sky blue?")
        rbee(*words)  # bootstraps the node and loads the model
        rbee(*words, env={"RBEE_LINK": "on"})
        _until_held(rbee)
        try:
            samples = in_turn(
                {
                    "ssh node true": command(*ssh(target, "true")),
                    "link": command(rbee_command(), *words, env=rbee.environment() | {"RBEE_LINK": "on"}),
                    "direct": command(rbee_command(), *words, env=rbee.environment() | {"RBEE_LINK": "off"}),
                },
                ROUNDS,
            )
        finally:
            rbee("link", "stop")
    return [
        compare("rbee infer, 1 token, warm, connection held", samples, "link", "ssh node true", goal=0.6),
        compare("rbee infer, 1 token, warm, its own connection", samples, "direct", "ssh node true", goal=2.3),
    ]


def _until_held(rbee: Rbee) -> None:
    """Raises AssertionError."""
    deadline = time.monotonic() + HELD_WITHIN_S
    while not rbee("link", "status", "--json").json().get("held"):
        assert time.monotonic() < deadline, "no connection is held"
        time.sleep(0.1)
