"""Where a model runs. Pure: values in, a decision out.

Rules
- The rows are hints of the registry; the worker decides, and `infer` falls back to Spawn where a hint was wrong.
- A named context is what a request needs, and a worker with more serves it, as its hive would say. Where none was
  named, one with less than DEFAULT_CTX may have been loaded for somebody who wanted just that, or have all that its
  model was trained for: the hive of its node is asked.
- A node that was named wins; otherwise the inventory's order decides, so that two equal calls go to one node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rbee.base.errors import UsageError
from rbee.inventory import Node
from rbee.registry import WorkerRow, as_text
from rbee_remote.protocol import LoadOptions, WorkerOptions
from rbee_remote.protocol.load_options import AUTO_CTX, DEFAULT_CTX, OPTIONS, is_open

#: What a worker's device is called that is no GPU.
CPU = "cpu"
_NOTHING_SAID = LoadOptions()


@dataclass(frozen=True, slots=True)
class Reuse:
    """A worker that holds the model already and had a free slot when it was last seen."""

    node: Node
    row: WorkerRow


@dataclass(frozen=True, slots=True)
class Spawn:
    """The hive of `node` is asked for a worker."""

    node: Node


def place(
    nodes: Sequence[Node],
    rows: Sequence[WorkerRow],
    model_of: Callable[[Node], str],
    load: LoadOptions = _NOTHING_SAID,
    *,
    wait_for_gpu: bool = False,
) -> Reuse | Spawn:
    """Choose among `nodes`, in this order: a usable worker that holds the model; a node with room; the first.

    nodes: what `--node` means; one node is an explicit choice. Of several, `local` is the last resort.
    model_of: the canonical ref of the model on a node, which may be another on each.
    rows: what the registry holds that is fresh enough to believe. load: what the request asks for; else a worker has to
    be loaded as the node's entry says. wait_for_gpu: a worker on a CPU is no answer: whether the node could do better
    is seen there. Raises UsageError for no nodes.
    """
    if not nodes:
        raise UsageError("the inventory has no nodes", hint="`rbee nodes add` adds one")
    reusable = [row for row in rows if not wait_for_gpu or row.device != CPU]
    ordered = sorted(nodes, key=lambda node: node.is_local)
    in_doubt: list[Node] = []
    for node in () if _is_for_the_hive(load) else ordered:
        wanted = load.over(node.load)
        if row := _usable(node, reusable, model_of, wanted):
            if _is_surely_enough(row, wanted):
                return Reuse(node, row)
            in_doubt.append(node)
    if in_doubt:
        return Spawn(in_doubt[0])
    return Spawn(next((node for node in ordered if _has_room(node, rows)), ordered[-1]))


def _is_for_the_hive(load: LoadOptions) -> bool:
    """Whether the registry cannot tell which worker does what a request asks: it knows the context, not whether that
    is the most that fits, and of the rest what the node's entry says."""
    return load.ctx == AUTO_CTX or bool(load.said().keys() - {"ctx", "slots"})


def _usable(
    node: Node, rows: Sequence[WorkerRow], model_of: Callable[[Node], str], load: LoadOptions
) -> WorkerRow | None:
    """The worker of `node` with the most free slots, of those that can take the request at once; one that is surely
    enough goes first."""
    candidates = (row for row in rows if row.node == node.name and row.is_usable and row.model == model_of(node))
    usable = [row for row in candidates if is_loaded_as(load, row.ctx, row.slots, row.loaded)]
    return max(usable, key=lambda row: (_is_surely_enough(row, load), row.slots_free), default=None)


def _is_surely_enough(row: WorkerRow, load: LoadOptions) -> bool:
    """Whether it has as much context as a model gets where nobody named a number, if nobody did."""
    return load.ctx is not None or row.ctx >= DEFAULT_CTX


def is_loaded_as(load: LoadOptions, ctx: int, slots: int, loaded: Mapping[str, str]) -> bool:
    """Whether a worker's context holds what is asked for, and it was loaded in that way: another request may have
    asked for something else. loaded: its other options, those that are known, as `registry.as_text` writes them."""
    if ctx < (load.ctx or AUTO_CTX) or load.slots not in (None, slots):
        return False
    wanted = load.for_worker()
    return all(is_open(name, value := getattr(wanted, name)) or loaded[name] == as_text(value) for name in loaded)


def loaded_as(options: WorkerOptions | None) -> dict[str, str]:
    """What `is_loaded_as` compares of a worker's options beside context and slots; nothing where they are not known."""
    names = OPTIONS.keys() - {"ctx", "slots"} if options else ()
    return {name: as_text(getattr(options, name)) for name in names}


def _has_room(node: Node, rows: Sequence[WorkerRow]) -> bool:
    """Whether the node's limit allows another worker. An idle one gives way, so only those at work count."""
    at_work = sum(1 for row in rows if row.node == node.name and not row.is_idle)
    return node.max_workers is None or at_work < node.max_workers
