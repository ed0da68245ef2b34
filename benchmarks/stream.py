"""One stream as a user sees it: tokens/s that `rbee infer` shows over SSH, against llama-bench's generation test."""

from __future__ import annotations

import json
import subprocess

from benchmarks.harness import Comparison, compare, in_turn
from benchmarks.llama_cpp import llama_bench
from benchmarks.testbed import keeper, key_pair, node, rbee_command
from rbee_remote.system.cores import usable_cores
from tests.testbed import assets

TOKENS = 128
ROUNDS = 7


def measure() -> list[Comparison]:
    with key_pair() as key, keeper() as rbee, node(key) as target:
        rbee.inventory.write_text(target.inventory())
        words = [rbee_command(), "infer", "--node", "node", "--json", "--timing", "--max-tokens", str(TOKENS)]
        words += ["--temperature", "0", "--raw", "Once upon a time, in a land far away, there"]

        def ours() -> float:
            done = subprocess.run(words, env=rbee.environment(), capture_output=True, text=True, check=True)
            finished = json.loads(done.stdout.splitlines()[-1])
            if finished["usage"]["completion_tokens"] != TOKENS:
                raise RuntimeError(f"the answer has {finished['usage']['completion_tokens']} tokens, not {TOKENS}")
            return 1 / float(finished["timings"]["tokens_per_s"])

        def theirs() -> float:
            (speed,) = llama_bench(assets.model(), 0, TOKENS, 1, usable_cores())[f"tg{TOKENS}"]
            return 1 / speed

        ours()  # bootstraps the node and loads the model
        samples = in_turn({"rbee": ours, "llama-bench": theirs}, ROUNDS)
    return [compare(f"one token of {TOKENS} over SSH", samples, "rbee", "llama-bench", goal=round(1 / 0.95, 3))]
