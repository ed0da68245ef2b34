"""How soon the command line is there: `rbee --help`, and `rbee nodes list` with 1,000 nodes."""

from __future__ import annotations

import sys

from benchmarks.harness import Comparison, command, compare, in_turn
from benchmarks.testbed import keeper, rbee_command

ROUNDS = 15
NODES = 1000


def measure() -> list[Comparison]:
    with keeper() as rbee:
        tables = (
            f'[nodes.n{number:04}]\nhost = "192.0.2.{number % 250}"\nport = {2000 + number}\n'
            for number in range(NODES)
        )
        rbee.inventory.write_text("\n".join(tables))
        env = rbee.environment()
        samples = in_turn(
            {
                "python -c pass": command(sys.executable, "-c", "pass", env=env),
                "help": command(rbee_command(), "--help", env=env),
                "list": command(rbee_command(), "nodes", "list", env=env),
            },
            ROUNDS,
        )
    return [
        compare("rbee --help", samples, "help", "python -c pass", goal=10),
        compare(f"rbee nodes list, {NODES} nodes", samples, "list", "python -c pass", goal=20),
    ]
