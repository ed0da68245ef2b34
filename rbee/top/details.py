"""All that is known of one row, and what the keys do, as texts. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rbee.render.screen import Line
from rbee.render.text import clock_time, one_line
from rbee.top import columns
from rbee.top.columns import Glyphs
from rbee.top.model import NodeRow, WorkerRow
from rbee.top.order import Row

_LABEL = 14
_HELP = (
    ("{arrows} PgUp PgDn Home End", "choose a node or a worker; scroll"),
    ("Enter", "all that is known of it"),
    ("s", "stop the worker once its requests are finished; asks first"),
    ("l", "follow the log of the worker, or of the node's hive"),
    ("o", "sort: as the inventory, tok/s, queue, memory, cpu/gpu, state, name"),
    ("/", "filter: words in names, @tags, states, models, devices; Enter keeps it, Esc ends it"),
    ("q, Esc", "back; at the list, q quits"),
    ("Ctrl-Z", "suspend; fg comes back"),
)
_COLUMNS = (
    ("CPU/GPU", "how busy: the GPUs in their mean, else all cores"),
    ("MEMORY", "used/all: of the GPUs, else the RAM; of a worker its own RAM"),
    ("SLOTS", "requests that are computed, of as many as can be at once"),
    ("WAIT", "requests that wait for a slot of the worker"),
    ("TOK/S", "tokens generated a second, over the last 5 s"),
    ("LAST MIN", "the same over the last minute, its highest at full height"),
    ("TTFT", "from a request to its first token, of late"),
)


def help_lines(cells: int, glyphs: Glyphs) -> list[Line]:
    keys = [(key.format(arrows=glyphs.arrows), what) for key, what in _HELP]
    found: list[Line] = [(("Keys", "bold"),)]
    for key, what in keys:
        found += _labelled(key, what, 10, cells, "bold")
    found += [(), (("Columns", "bold"),)]
    for title, what in _COLUMNS:
        found += _labelled(title, what, 10, cells, "bold")
    return found


def _labelled(label: str, value: str, column: int, cells: int, style: str) -> list[Line]:
    """A value beside its label, broken between words; below it where the label is longer than its column."""
    room = max(8, cells - column)
    lines = textwrap.wrap(value, room) or [""]
    first = f"{label:<{column}}"
    if len(first) > column:
        return [((first, style),), *(((" " * column, ""), (line, "")) for line in lines)]
    return [((first, style), (lines[0], "")), *(((" " * column, ""), (line, "")) for line in lines[1:])]


def of_row(row: Row, cells: int, glyphs: Glyphs) -> list[Line]:
    pairs = _of_node(row) if isinstance(row, NodeRow) else _of_worker(row)
    title = row.name if isinstance(row, NodeRow) else f"{row.model} on {row.node}"
    found: list[Line] = [((one_line(title), "bold"),)]
    for label, value in pairs:
        if value:
            found += _labelled(label, one_line(value), _LABEL, cells, "dim")
    if any(row.history):
        drawn = columns.sparkline(row.history, max(8, cells - _LABEL), glyphs, columns.MOST_HISTORY)
        found.append(((f"{'last minute':<{_LABEL}}", "dim"), (drawn.strip(), "good")))
    return found


def _of_node(node: NodeRow) -> Iterator[tuple[str, str]]:
    yield "state", node.state.value
    yield "why", node.why
    if node.retry_s is not None:
        yield "tried again", f"in {clock_time(node.retry_s)}"
    yield "tags", " ".join(node.tags)
    busy = f", {columns.percent(node.cpu)} busy" if node.cpu is not None else ""
    yield "cores", f"{node.cores}{busy}" if node.cores else ""
    yield "RAM", columns.gigabytes(node.ram_used_mb, node.ram_total_mb)
    for gpu in node.gpus:
        use = "" if gpu.use is None else f"  {columns.percent(gpu.use)} busy"
        memory = columns.gigabytes(gpu.used_mb, gpu.total_mb)
        yield "GPU", f"{gpu.name}  {memory}{use}".rstrip()
    yield "tok/s", columns.rate(node.rate)
    for worker in node.workers:
        slots = f"{worker.running}/{worker.slots} slots"
        waits = f", {worker.queued} wait" if worker.queued else ""
        yield "worker", f"{worker.id}  {worker.model}  {worker.state}  {slots}{waits}"


def _of_worker(worker: WorkerRow) -> Iterator[tuple[str, str]]:
    yield "id", worker.id
    yield "state", worker.state if worker.state != "loading" else f"loading {worker.progress:.0%}"
    yield "why", worker.note
    yield "device", worker.device
    yield "context", f"{worker.ctx} tokens" if worker.ctx else ""
    yield "slots", f"{worker.running} of {worker.slots} taken, {worker.queued} wait"
    yield "memory", f"{worker.rss_mb} MB" if worker.rss_mb else ""
    yield "idle for", clock_time(worker.idle_s) if worker.idle_s is not None else ""
    yield "requests", f"{worker.requests} over" if worker.requests else ""
    yield "generated", f"{worker.generated} tokens" if worker.generated else ""
    yield "tok/s", columns.rate(worker.rate)
    yield "first token", columns.seconds(worker.first_token_s)
