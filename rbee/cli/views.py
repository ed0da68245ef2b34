"""Inventory and answers of nodes as tables and JSON values; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rbee.base.durations import format_duration
from rbee.base.errors import RbeeError
from rbee.inventory import Node
from rbee.render import Table
from rbee.render.text import amount, clock_time, error_data, one_line
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.fleet.bench import Bench
    from rbee.fleet.nodes import Ping
    from rbee.node.diagnosis import Finding
    from rbee.node.session import PerNode
    from rbee.registry import Changes
    from rbee_remote.protocol import HiveInfo, ModelInfo, WorkerInfo, WorkerStatus


#: Of an id, in tables; every command takes the beginning of one.
SHORT_ID = 8


def node_data(node: Node) -> dict[str, Any]:
    """Every key of the inventory, as JSON values."""
    return {
        "name": node.name,
        "host": node.host,
        "port": node.port,
        "user": node.user,
        "identity_file": str(node.identity_file) if node.identity_file else None,
        "host_key": node.host_key,
        "jump": list(node.jump),
        "tags": sorted(node.tags),
        "backend": node.backend,
        "builds_from": list(node.builds_from),
        "home": node.home,
        "hub_token": node.hub_token,
        "model": node.model,
        "keep_alive": format_duration(node.keep_alive_s),
        "max_workers": node.max_workers,
        **node.load.plain(),
        "env": node.env,
    }


def address(node: Node) -> str:
    """[USER@]HOST[:PORT], or what stands for this machine."""
    if node.host is None:
        return "this machine"
    host = f"[{node.host}]" if ":" in node.host and node.port else node.host
    return f"{node.user + '@' if node.user else ''}{host}{f':{node.port}' if node.port else ''}"


def nodes_table(nodes: Sequence[Node]) -> Table:
    rows = [
        (node.name, address(node), " ".join(sorted(node.tags)) or "-", node.backend, node.model or "-")
        for node in nodes
    ]
    return Table(("NAME", "ADDRESS", "TAGS", "BACKEND", "MODEL"), rows, [node_data(node) for node in nodes])


def pings_table(answers: Sequence[PerNode[Ping]]) -> Table:
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        ping = answer.value
        times = (ping.connect_s, ping.authenticate_s, ping.rtt_s) if ping else (None, None, None)
        rows.append((answer.node.name, "ok" if ping else "FAILED", *map(milliseconds, times), why(answer.error)))
        seconds = dict(zip(("connect_s", "authenticate_s", "rtt_s"), times, strict=True))
        data.append({"node": answer.node.name, "ok": ping is not None, **seconds, **_error(answer.error)})
    return Table(("NODE", "PING", "CONNECT", "AUTHENTICATE", "ROUND TRIP", "WHY"), rows, data)


def findings_table(findings: Sequence[Finding]) -> Table:
    rows = [(str(f.level).upper(), f.title, one_line(f.detail), one_line(f.fix)) for f in findings]
    data = [{"level": str(f.level), "title": f.title, "detail": f.detail, "fix": f.fix} for f in findings]
    return Table(("LEVEL", "WHAT", "FOUND", "FIX"), rows, data)


def workers_table(answers: Sequence[PerNode[list[WorkerInfo]]]) -> Table:
    """A node that does not answer is a row."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, "-", "-", "unreachable", "-", "-", "-", why(answer.error)))
            data.append({"node": name, **_error(answer.error)})
        for worker in answer.value or ():
            rows.append((name, *_worker_cells(worker)))
            data.append({"node": name, **worker_data(worker)})
    return Table(("NODE", "ID", "MODEL", "STATE", "DEVICE", "SLOTS", "MEMORY", "NOTE"), rows, data)


def sync_table(answers: Sequence[PerNode[Changes]]) -> Table:
    """What the hives said that the registry did not know: how many workers, in JSON which."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name, changes = answer.node.name, answer.value
        if changes is None:
            rows.append((name, "-", "-", "-", why(answer.error)))
            data.append({"node": name, **_error(answer.error)})
        else:
            ids = {"added": changes.added, "dropped": changes.dropped, "kept": changes.kept}
            rows.append((name, *(str(len(of)) for of in ids.values()), ""))
            data.append({"node": name, **{key: list(of) for key, of in ids.items()}})
    return Table(("NODE", "ADDED", "DROPPED", "KEPT", "WHY"), rows, data)


def _worker_cells(worker: WorkerInfo) -> tuple[str, ...]:
    state = worker.state.value
    if state == "loading":
        state = f"loading {worker.progress:.0%}"
    idle = f"idle for {clock_time(worker.idle_s)}" if worker.idle_s is not None else ""
    note = ", ".join(filter(None, (idle, _kept(worker))))
    if worker.error:
        note = one_line(str(worker.error.get("message", "")))
    memory = f"{worker.rss_mb} MB" if worker.rss_mb else "-"
    slots = f"{worker.slots_free}/{worker.slots} free"
    return (worker.id[:SHORT_ID], worker.model, state, worker.device, slots, memory, note)


def _kept(worker: WorkerInfo) -> str:
    """For how long its keepers hold it: "" for one that nobody does, or that is at work."""
    if not worker.leases or worker.idle_s is None:
        return ""
    left = [lease.left_s for lease in worker.leases if lease.left_s is not None]
    span = f"for {clock_time(max(left))}" if len(left) == len(worker.leases) else "without end"
    by = f" by {len(worker.leases)} keepers" if len(worker.leases) > 1 else ""
    return f"kept {span}{by}"


def worker_record(node: str, worker: WorkerInfo) -> dict[str, Any]:
    """All that is known of a worker, for people: moments and times as they are read, options one a line."""
    from rbee.registry.rows import iso_time

    data = {"node": node, **worker_data(worker)}
    options = data.pop("options") or {}
    data["created_at"] = iso_time(worker.created_at)
    data["keep_alive"] = format_duration(data.pop("keep_alive_s"))
    data["idle"] = clock_time(data.pop("idle_s")) if worker.idle_s is not None else None
    data["leases"] = [
        f"{lease.keeper or 'others'} {'without end' if lease.left_s is None else 'for ' + clock_time(lease.left_s)}"
        for lease in worker.leases
    ]
    return {**data, **{name: value for name, value in options.items() if name not in data}}


def worker_data(worker: WorkerInfo) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    data = encode(worker)
    for private in ("audit_head", "secret"):  # told to who starts a worker or asks its hive, and shown to nobody
        del data[private]
    return data


def health_table(answers: Sequence[PerNode[list[tuple[WorkerInfo, WorkerStatus | None]]]]) -> Table:
    """What the workers say themselves; None for one that does not answer."""
    from rbee_remote.protocol import encode

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, "-", "-", "unreachable", "-", "-", why(answer.error)))
            data.append({"node": name, **_error(answer.error)})
        for info, status in answer.value or ():
            cells = (f"{status.slots_free}/{status.slots} free", str(status.queued)) if status else ("-", "-")
            state = status.state.value if status else "no answer"
            rows.append((name, info.id[:SHORT_ID], info.model, state, *cells, ""))
            data.append({"node": name, "id": info.id, "healthy": bool(status), "status": status and encode(status)})
    return Table(("NODE", "ID", "MODEL", "HEALTH", "SLOTS", "QUEUED", "NOTE"), rows, data)


def models_table(answers: Sequence[PerNode[list[ModelInfo]]]) -> Table:
    """A node that does not answer is a row."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, "-", "-", "-", why(answer.error)))
            data.append({"node": name, **_error(answer.error)})
        for model in answer.value or ():
            rows.append((name, model.model, amount(model.size), model.meta.quantization or "-", model.source))
            data.append({"node": name, **model_data(model)})
    return Table(("NODE", "MODEL", "SIZE", "QUANTIZATION", "SOURCE"), rows, data)


def model_data(model: ModelInfo) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    return encode(model)


def hives_table(answers: Sequence[PerNode[HiveInfo | None]]) -> Table:
    """None: no hive runs there, which is no fault."""
    from rbee_remote.protocol import encode

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name, hive = answer.node.name, answer.value
        if hive is None:
            rows.append((name, "unreachable" if answer.error else "none", "-", "-", "-", why(answer.error)))
            data.append({"node": name, "hive": None, **_error(answer.error)})
        else:
            state = "draining" if hive.draining else "running"
            rows.append((name, state, hive.version, str(hive.pid), str(hive.workers), hive.home))
            data.append({"node": name, "hive": encode(hive)})
    return Table(("NODE", "HIVE", "VERSION", "PID", "WORKERS", "NOTE"), rows, data)


def bench_table(answers: Sequence[PerNode[Bench]]) -> Table:
    """A row for each test of a node, one for a node that failed."""
    from rbee.fleet.bench import speed
    from rbee_remote.protocol import encode

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, *("-" * 6), "FAILED", "-", why(answer.error)))
            data.append({"node": name, **_error(answer.error)})
        if answer.value:
            cells, values = _bench_cells(answer.value)
            for test in answer.value.result.tests:
                measured = speed(test)
                rows.append((name, *cells, test.test, f"{measured.mean:.2f} ± {measured.deviation:.2f}", ""))
                rates = {"tokens_per_s": measured.mean, "deviation": measured.deviation}
                data.append({"node": name, **values, **encode(test), **rates})
    columns: tuple[str, ...]
    columns = ("NODE", "MODEL", "SIZE", "PARAMETERS", "BACKEND", "DEVICE", "THREADS", "TEST", "TOKENS/S", "WHY")
    if not any(answer.error for answer in answers):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, data)


def _bench_cells(bench: Bench) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What all rows of a node have in common, as texts and as JSON values."""
    worker, model, threads = bench.worker, bench.model, bench.result.threads
    parameters = model.meta.parameters
    shown = f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M" if parameters else "-"
    values = {
        "model": model.model,
        "size": model.size,
        "parameters": parameters,
        "quantization": model.meta.quantization,
        "backend": worker.backend,
        "device": worker.device,
        "threads": threads,
        "ctx": worker.ctx,
        "slots": worker.slots,
    }
    return (model.model, amount(model.size), shown, worker.backend, worker.device, str(threads)), values


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def why(error: RbeeError | None) -> str:
    """An error in a cell: what happened, and the reason where the message has none."""
    if error is None:
        return ""
    reason = error.details.get("reason")
    return one_line(f"{error.message}: {reason}" if reason else error.message)


def partial_failure(errors: Sequence[RbeeError | None]) -> RbeeError | None:
    """What a command over several nodes ends with: nothing, the error of its only node, or PARTIAL_FAILURE."""
    failed = [error for error in errors if error]
    if not failed:
        return None
    if len(errors) == 1:
        return failed[0]
    return RbeeError(ErrorCode.PARTIAL_FAILURE, f"{len(failed)} of {len(errors)} nodes failed")


def _error(error: RbeeError | None) -> dict[str, Any]:
    return {"error": error_data(error)} if error else {}
