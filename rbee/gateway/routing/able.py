"""Which of a request's targets can serve what it asks for, as far as the nodes' catalogs and the refs tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rbee.gateway.base.views import NodeView, Target
from rbee.models.able import said_abilities
from rbee_remote.protocol.abilities import asked_by, refusal


def able(targets: Sequence[Target], nodes: Iterable[NodeView], path: str) -> tuple[tuple[Target, ...], str]:
    """The targets less those that are known to be made for something else than `path`, and why the first of them is
    none. Of a model that several nodes have, each may have another file. Of one that no node has yet, and that may be
    anything, the target says what it has to be able to do."""
    if not (ability := asked_by(path)):
        return tuple(targets), ""
    seen, kept, why = tuple(nodes), [], ""
    for target in targets:
        there = [node for node in seen if target.model in node.models]
        infos = [node.models[target.model].meta.able_as(target.load.over(node.load).pooling) for node in there]
        known = infos or [each for each in (said_abilities(target.model, target.load),) if each]
        told = [refusal(target.model, each, ability) for each in known]
        if told and all(told):
            why = why or told[0]
        else:
            kept.append(target if told else replace(target, ability=ability))
    return tuple(kept), why
