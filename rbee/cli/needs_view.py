"""What a model needs of a node's memory, as rows and JSON values; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rbee.inventory import Node
from rbee.render import Table
from rbee.render.text import amount

if TYPE_CHECKING:
    from rbee_remote.protocol import ModelNeeds, NeedPoint


def summary(node: Node, needs: ModelNeeds) -> dict[str, Any]:
    """The model and the node's memory, a line each."""
    info, meta = needs.info, needs.info.meta
    room = "; ".join(
        f"{point.ctx:,} tokens with {_slots(point.slots)}" if point.ctx else f"none with {_slots(point.slots)}"
        for point in needs.largest
    )
    return {
        "node": node.name,
        "model": info.model,
        "file": info.path,
        "size": amount(info.size),
        "quantization": meta.quantization or "-",
        "architecture": meta.architecture,
        "parameters": f"{meta.parameters / 1e6:,.0f} M" if meta.parameters else "-",
        "layers": meta.n_layers,
        "trained_context": f"{meta.n_ctx_train:,} tokens",
        "memory": f"{needs.available_mb:,} MB of {needs.memory.upper()} can be had ({needs.device})",
        "largest_context": room,
        "told_by": "llama.cpp" if needs.measured else "an upper bound from the file's metadata",
    }


def needs_table(needs: ModelNeeds) -> Table:
    """Context sizes down, slot counts across; what the node has no room for is marked."""
    counts = sorted({point.slots for point in needs.points})
    at = {(point.ctx, point.slots): point for point in needs.points}
    rows: list[Sequence[str]] = [
        (f"{ctx:,}", *(_cell(at[ctx, slots], needs.available_mb) for slots in counts))
        for ctx in sorted({point.ctx for point in needs.points})
    ]
    return Table(("CONTEXT", *(_slots(count).upper() for count in counts)), rows, [])


def needs_data(node: Node, needs: ModelNeeds) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    data = encode(needs)
    points = [{**point, "fits": point["needed_mb"] <= needs.available_mb} for point in data.pop("points")]
    return {"node": node.name, **data, "points": points}


def _cell(point: NeedPoint, available_mb: int) -> str:
    text = f"{point.needed_mb:,} MB"
    return text if point.needed_mb <= available_mb else f"{text} (no room)"


def _slots(count: int) -> str:
    return f"{count} slot{'' if count == 1 else 's'}"
