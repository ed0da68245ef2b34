"""Where a model runs. Pure: values in, a decision out.

Rules
- The rows are hints of the registry; the worker decides, and `infer` falls back to Spawn where a hint was wrong.
- A node that was named wins; otherwise the inventory's order decides, so that two equal calls go to one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rbee.base.errors import UsageError
from rbee.inventory import Node
from rbee.registry import WorkerRow, joined
from rbee_remote.protocol import WorkerOptions

_DEFAULT = WorkerOptions()


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
    *,
    ctx: int | None = None,
    slots: int | None = None,
    reuse: bool = True,
) -> Reuse | Spawn:
    """Choose among `nodes`, in this order: a usable worker that holds the model; a node with room; the first.

    nodes: what `--node` means; one node is an explicit choice. Of several, `local` is the last resort.
    model_of: the canonical ref of the model on a node, which may be another on each.
    rows: what the registry holds that is fresh enough to believe. ctx and slots: what the request asks for, None for
    what the node's entry says, or any; a worker loaded with less context, or with another number of slots, does not
    serve it, nor one that was loaded in another way than the node's entry says. reuse: whether a row can tell at all
    which worker serves. Raises UsageError for no nodes.
    """
    if not nodes:
        raise UsageError("there is no node to choose from", hint="`rbee nodes add` adds one")
    ordered = sorted(nodes, key=lambda node: node.is_local)
    for node in ordered if reuse else ():
        row = _usable(node, rows, model_of, ctx, slots)
        if row:
            return Reuse(node, row)
    return Spawn(next((node for node in ordered if _has_room(node, rows)), ordered[-1]))


def _usable(
    node: Node, rows: Sequence[WorkerRow], model_of: Callable[[Node], str], ctx: int | None, slots: int | None
) -> WorkerRow | None:
    """The worker of `node` with the most free slots, of those that can take the request at once."""
    ctx, slots = node.ctx if ctx is None else ctx, node.slots if slots is None else slots
    candidates = (row for row in rows if row.node == node.name and row.is_usable and row.model == model_of(node))
    usable = [row for row in candidates if fits(row, ctx, slots) and _is_loaded_for(row, node)]
    return max(usable, key=lambda row: row.slots_free, default=None)


def fits(row: WorkerRow, ctx: int | None, slots: int | None = None) -> bool:
    """Whether the worker's context holds what was asked for, and it has as many slots. None: any will do."""
    return (ctx is None or row.ctx >= ctx) and (slots is None or row.slots == slots)


def _is_loaded_for(row: WorkerRow, node: Node) -> bool:
    """Whether the worker was loaded as the node's entry says: another request may have asked for something else."""
    return (
        row.kv_type == (node.kv_type or _DEFAULT.kv_type)
        and row.flash_attention == (node.flash_attention or _DEFAULT.flash_attention)
        and (not node.devices or row.devices == joined(node.devices))
        and (not node.tensor_split or row.tensor_split == joined(node.tensor_split))
    )


def _has_room(node: Node, rows: Sequence[WorkerRow]) -> bool:
    """Whether the node's limit allows another worker. An idle one gives way, so only those at work count."""
    at_work = sum(1 for row in rows if row.node == node.name and not row.is_idle)
    return node.max_workers is None or at_work < node.max_workers
