"""Which of a request's targets can serve what it asks for, as far as the nodes' catalogs tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rbee.gateway.base.views import NodeView, Target
from rbee_remote.protocol.abilities import asked_by, refusal


def able(targets: Sequence[Target], nodes: Iterable[NodeView], path: str) -> tuple[tuple[Target, ...], str]:
    """The targets less those that are known to be made for something else than `path`, and why the first of them is
    none. A model that no node has yet may be anything."""
    ability = asked_by(path)
    infos = {ref: info for node in nodes for ref, info in node.models.items()}
    kept, why = [], ""
    for target in targets:
        info = infos.get(target.model)
        told = refusal(target.model, info.meta.able, ability) if info and ability else ""
        why = why or told
        if not told:
            kept.append(target)
    return tuple(kept), why
