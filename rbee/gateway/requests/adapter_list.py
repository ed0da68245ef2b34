"""The LoRA adapters that a model's requests are computed with, in llama-server's form. Pure.

A gateway has many workers, so that it tells of the model that was named: what its alias, or else its node, says. Each
worker that takes its requests was loaded with these, in this order, which makes their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from rbee.gateway.base.views import NodeView
from rbee.gateway.routing.names import Resolved


def adapter_list(resolved: Resolved, nodes: Sequence[NodeView]) -> list[dict[str, Any]]:
    """Of the first target, on the first of its nodes. A path of the gateway's own machine is told by its last part."""
    target = resolved.targets[0]
    node = next((each for each in nodes if each.name in target.nodes), None)
    load = target.load.over(node.load) if node else target.load
    return [
        {"id": id_, "path": one.name if one.is_ref else PurePath(one.name).name, "scale": one.scale}
        for id_, one in enumerate(load.adapters)
    ]
