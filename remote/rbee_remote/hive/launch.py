"""Starting a worker's process: its command line, by which it is known in a process list, and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import WorkerConfig, encode
from rbee_remote.system.child import Child
from rbee_remote.system.identity import own_mark
from rbee_remote.system.layout import Layout


async def launch(
    command: Sequence[str], worker: WorkerRecord, *, keeper: str, env: Mapping[str, str], sandbox: str, layout: Layout
) -> Child:
    """command: the argv that starts a worker. keeper: whose lease is the first. sandbox: as in SpawnRequest.

    Raises OSError."""
    config = WorkerConfig(
        id=worker.id,
        model=worker.key.model,
        path=worker.key.path,
        socket=str(worker.socket),
        options=worker.key.options,
        ctx=worker.ctx,
        slots=worker.slots,
        keep_alive_s=worker.keep_alive_s,
        keeper=keeper,
        home=str(layout.home),
        secret=worker.secret,
        sandbox=sandbox,
    )
    marked = [*command, *_marks(worker, layout)]
    return await Child.start(marked, config=json.dumps(encode(config)).encode(), env=env, log=worker.log)


def _marks(worker: WorkerRecord, layout: Layout) -> list[str]:
    """For the process list: a clean-up knows by this what the process is, and where it belongs, without a hive."""
    return [f"--id={worker.id}", own_mark(), f"--home={layout.home}", f"--run-dir={layout.run_dir}"]
