"""A whole `rbee infer` of one token on a warm worker over SSH, against one `ssh node true` without a master."""

from __future__ import annotations

from benchmarks.harness import Comparison, command, compare, in_turn
from benchmarks.testbed import keeper, key_pair, node, rbee_command, ssh

ROUNDS = 15


def measure() -> list[Comparison]:
    with key_pair() as key, keeper() as rbee, node(key) as target:
        rbee.inventory.write_text(target.inventory())
        words = ("infer", "--node", "node", "--max-tokens", "1", "Why is the sky blue?")
        rbee(*words)  # bootstraps the node and loads the model
        samples = in_turn(
            {
                "ssh node true": command(*ssh(target, "true")),
                "rbee": command(rbee_command(), *words, env=rbee.environment()),
            },
            ROUNDS,
        )
    return [compare("rbee infer, 1 token, warm", samples, "rbee", "ssh node true", goal=3)]
