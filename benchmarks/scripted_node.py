"""The Python of a node whose workers have a script in place of a model: `scripted_node.py PYTHON ARGUMENTS…`.

PYTHON: the file that runs this one, which the hive is to start its workers with. Everything else is the node's own:
hive, worker process, HTTP, sockets.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

#: Seconds of a step, each of which gives every slot a token; the variable of that name says otherwise.
PACE_S = float(os.environ.get("PACE_S", "0.25"))
#: A step takes the prompts of all slots.
_BATCH = 8192


def main(python: str, *arguments: str) -> None:
    if len(arguments) < 3 or arguments[0] != "-I" or not arguments[1].endswith(".zip"):
        os.execv(sys.executable, [sys.executable, *arguments])
    _, payload, command, *words = arguments
    sys.executable = python
    sys.path.insert(0, payload)
    if command == "worker":
        sys.exit(_work(words))
    importlib.import_module("rbee_remote.__main__").main([command, *words])


def _work(words: Sequence[str]) -> int:
    sys.path.append(str(Path(__file__).parents[1]))
    engine = importlib.import_module("tests.doubles.engine")
    script = importlib.import_module("tests.ssh.scripted_worker")
    scripted = engine.ScriptedEngine(script.answer, n_batch=_BATCH, before_step=lambda _: time.sleep(PACE_S))
    worker = importlib.import_module("rbee_remote.worker.main")
    vars(worker)["_load"] = engine.loads(scripted)
    return int(worker.main(list(words)))


if __name__ == "__main__":
    main(*sys.argv[1:])
