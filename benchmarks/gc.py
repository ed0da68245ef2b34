"""`rbee gc --dry-run` over 100 nodes with 10,000 rows, against a tenth of both. This machine's sshd plays all nodes."""

from __future__ import annotations

import getpass
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.fanout import ADDRESSES, PORT, sshd
from benchmarks.harness import Comparison, command, compare, in_turn
from benchmarks.testbed import keeper, key_pair, rbee_command
from rbee.registry import Registry
from rbee.setup.base.payload import build_payload
from rbee_remote.protocol import WorkerInfo, WorkerState
from tests.testbed.cli import Rbee
from tests.testbed.node import KeyPair

ROWS_PER_NODE = 100
MANY, FEW = 100, 10


def measure() -> list[Comparison]:
    with (
        tempfile.TemporaryDirectory(prefix="rbee-bench-home-") as bare,  # this user's rc files take longer than rbee
        key_pair() as key,
        keeper() as large,
        keeper() as small,
        sshd(key, SetEnv=f"HOME={bare}") as fingerprint,
    ):
        samples = in_turn(
            {
                "10,000 rows": _dry_run(large, MANY, key, fingerprint),
                "1,000 rows": _dry_run(small, FEW, key, fingerprint),
            }
        )
    name = f"rbee gc --dry-run, {MANY * ROWS_PER_NODE:,} rows, {MANY} nodes"
    return [compare(name, samples, "10,000 rows", "1,000 rows", goal=12.0)]


def _dry_run(rbee: Rbee, nodes: int, key: KeyPair, fingerprint: str) -> Callable[[], None]:
    """A keeper of so many nodes, each of them set up, with rows of workers that are gone."""
    names = [f"n{number}" for number in range(nodes)]
    rbee.inventory.write_text("".join(_table(rbee, names, name, key, fingerprint) for name in names))
    with Registry.open(rbee.home / "workers.db") as registry:
        for name in names:
            _set_up(_home(rbee, name))
            registry.sync_node(name, [_worker(name, number) for number in range(ROWS_PER_NODE)])
    return command(rbee_command(), "gc", "--dry-run", "--node", "@bench", env=rbee.environment())


def _home(rbee: Rbee, name: str) -> Path:
    return rbee.home.parent / "nodes" / name


def _set_up(home: Path) -> None:
    """As much of a node as makes it one: the payload, from which the survey runs."""
    shutil.rmtree(home, ignore_errors=True)
    (home / "payloads").mkdir(parents=True)
    (home / "payloads" / build_payload().name).write_bytes(build_payload().data)


def _table(rbee: Rbee, names: list[str], name: str, key: KeyPair, fingerprint: str) -> str:
    address = ADDRESSES[names.index(name) % len(ADDRESSES)]
    return (
        f'[nodes.{name}]\nhost = "{address}"\nport = {PORT}\nuser = "{getpass.getuser()}"\ntags = ["bench"]\n'
        f'identity_file = "{key.private}"\nhost_key = "{fingerprint}"\nhome = "{_home(rbee, name)}"\n'
    )


def _worker(node: str, number: int) -> WorkerInfo:
    """A worker from before the machine was restarted."""
    name = f"{node.encode().hex()}{number:x}"[:16].rjust(16, "0")
    return WorkerInfo(
        id=name,
        model="smollm2:135m",
        state=WorkerState.IDLE,
        backend="cpu",
        device="cpu",
        socket=f"/run/rbee/{node}/worker-{name}.sock",
        pid=number + 2,
        start_ticks=1,
        boot_id="0" * 32,
        ctx=4096,
        slots=4,
        slots_free=4,
        keep_alive_s=300.0,
        created_at=0.0,
    )
