"""Which of a request's targets can serve what it asks for, as far as the nodes' catalogs tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rbee.gateway.base.views import NodeView, Target
from rbee_remote.protocol.abilities import asked_by, refusal


def able(targets: Sequence[Target], nodes: Iterable[NodeView], path: str) -> tuple[tuple[Target, ...], str]:
    """The targets less those that are known to be made for something else than `path`, and why the first of them is
    none. A model that no node has yet may be anything; of one that several have, each may have another file."""
    if not (ability := asked_by(path)):
        return tuple(targets), ""
    seen, kept, why = tuple(nodes), [], ""
    for target in targets:
        infos = [node.models[target.model] for node in seen if target.model in node.models]
        told = [refusal(target.model, info.meta.able, ability) for info in infos]
        if told and all(told):
            why = why or told[0]
        else:
            kept.append(target)
    return tuple(kept), why
