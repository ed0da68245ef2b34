"""The worker: a process that holds one model in llama.cpp and generates tokens.

    app ─ service ─┬─ loop (engine thread) ─┬─ batching   what the next step computes; pure
                   │                        ├─ engine     llama.cpp, behind the interface of `interface`
                   │                        └─ generation one request's tokens to its events; stream cuts the text
                   ├─ journal   the events of one request, followed by its response
                   ├─ state     what the worker says of itself
                   └─ hive_pipe how the hive is told, and the news that it is gone

Two threads. The event loop's owns connections, timers and the process's life; the engine's owns the model.
They share the scheduler under one lock (`loop`), and events go from the engine's to the event loop's, never back.
"""

from __future__ import annotations

import os


def main(argv: list[str]) -> int:
    """Run a worker from `argv` (without the command's name); its exit status."""
    # Else numpy's library starts a thread for each core when it is imported, which the sandbox would not bind. Nothing
    # here multiplies matrices with numpy.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from rbee_remote.worker.main import main as run

    return run(argv)
