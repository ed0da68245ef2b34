"""A registry that lost its rows gets them back from the hives; a changed log is found, here and on the node."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from tests.testbed.cli import Rbee

pytestmark = pytest.mark.container

NODE_LOG = "/home/bee/.rbee/node/log/audit.log"


def free_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


def test_what_the_registry_lost_and_what_the_logs_lost(rbee: Rbee, ready_node: Callable[..., Any]) -> None:
    node = ready_node()
    silent = (
        f'[nodes.gpu2]\nhost = "127.0.0.1"\nport = {free_port()}\nuser = "bee"\nhost_key = "{node.fingerprint()}"\n'
    )
    rbee.inventory.write_text(node.inventory() + silent)
    rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    _a_damaged_registry_is_rebuilt(rbee)
    _sync_says_what_changed(rbee)
    _a_changed_log_is_found(rbee, node)
    _a_deleted_record_is_missed(rbee, node)
    rbee("hive", "stop", "gpu1")
    assert rbee("audit", "list", "--json").json()[-1]["action"] == "hive.stop"
    node.assert_quiet()


def _a_damaged_registry_is_rebuilt(rbee: Rbee) -> None:
    database = rbee.home / "workers.db"
    database.write_bytes(b"not a database" * 1000)
    done = rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    (aside,) = rbee.home.glob("workers.db.corrupt-*")
    assert aside.read_bytes() == b"not a database" * 1000
    assert f"was damaged and is kept as {aside.name}" in done.stderr
    assert "1 worker found; no answer from gpu2" in done.stderr
    assert "smollm2:135m runs on gpu1" in done.stderr  # phase 1 has the row that came back
    assert "rebuilt" not in rbee("workers", "list", "gpu1").stderr


def _sync_says_what_changed(rbee: Rbee) -> None:
    (worker,) = rbee("workers", "list", "gpu1", "--json").json()
    with sqlite3.connect(rbee.home / "workers.db") as registry:
        for changes in ({"worker_id": "0" * 16}, {"worker_id": "1" * 16, "node": "gpu2"}):
            columns = [row[1] for row in registry.execute("pragma table_info(workers)")]
            values = ", ".join(f"'{changes[name]}'" if name in changes else name for name in columns)
            registry.execute(f"insert into workers select {values} from workers where node = 'gpu1' limit 1")
        registry.execute("delete from workers where worker_id = ?", (worker["id"],))
    registry.close()
    partly = rbee("workers", "sync", "--json", status=10)
    by_node = {row["node"]: row for row in partly.lines()[0]}
    assert by_node["gpu1"] == {"node": "gpu1", "added": [worker["id"]], "dropped": ["0" * 16], "kept": []}
    assert by_node["gpu2"]["error"]["code"] == "CONNECTION_TIMEOUT"
    assert rbee("workers", "sync", "gpu1", "--json").json()[0]["kept"] == [worker["id"]]
    with sqlite3.connect(rbee.home / "workers.db") as registry:
        assert registry.execute("select worker_id from workers where node = 'gpu2'").fetchall() == [("1" * 16,)]
    registry.close()


def _a_changed_log_is_found(rbee: Rbee, node: Any) -> None:
    keeper, on_node = rbee("audit", "verify", "gpu1", "--json").json()
    assert keeper["files"] == [str(rbee.home / "log/audit.log")]
    assert on_node["files"] == [NODE_LOG]
    assert keeper["lines"] >= 3
    assert on_node["lines"] >= 3
    assert keeper["breaks"] == on_node["breaks"] == []
    infers = [entry for entry in rbee("audit", "list", "--node", "gpu1", "--json").json() if entry["action"] == "infer"]
    assert [(entry["outcome"], entry["completion_tokens"]) for entry in infers] == [("ok", 1), ("ok", 1)]

    for edit, line in (("2s/gpu1/gpu2/;2s/root/mallory/;2s/worker/warden/", 3), ("1d", 1), ("$d", on_node["lines"])):
        node.exec(f"cp {NODE_LOG} /tmp/audit.kept && sed -i '{edit}' {NODE_LOG}")
        broken = rbee("audit", "verify", "gpu1", status=2)
        assert f"{NODE_LOG}, line {line}:" in broken.stderr, edit
        node.exec(f"cat /tmp/audit.kept > {NODE_LOG} && chown bee {NODE_LOG}")

    own = rbee.home / "log/audit.log"
    whole = own.read_bytes()
    own.write_bytes(whole.replace(b'"ok"', b'"OK"', 1))
    error = rbee("audit", "verify", "gpu1", "--json", status=2).stdout
    assert "AUDIT_BROKEN" in error
    assert f"{own}, line 2" in error
    own.write_bytes(whole)


def _a_deleted_record_is_missed(rbee: Rbee, node: Any) -> None:
    """Log and head together, of one side: the other's shows it since a worker was started."""
    rbee("hive", "stop", "gpu1")
    rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    folder = NODE_LOG.removesuffix("/audit.log")
    node.exec(f"cd {folder} && mkdir /tmp/kept && mv audit.log audit.head /tmp/kept")
    missed = rbee("audit", "verify", "gpu1", status=2)
    assert "the audit log of gpu1 lacks entries that the other side's log shows" in missed.stderr
    assert "MISSING" in missed.stdout
    node.exec(f"mv /tmp/kept/* {folder}")

    kept = {path: path.read_bytes() for path in (rbee.home / "log").glob("audit.*")}
    for path in kept:
        path.unlink()
    missed = rbee("audit", "verify", "gpu1", "--json", status=2)
    assert "AUDIT_BROKEN" in missed.stdout
    assert "the audit log of this keeper lacks entries" in missed.stdout
    for path, content in kept.items():
        path.write_bytes(content)
    assert "MISSING" not in rbee("audit", "verify", "gpu1").stdout
