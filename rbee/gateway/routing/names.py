"""From the `model` of a request to what can serve it, and the models that there are. Pure.

    chat                        an alias, `[models.chat]` of the inventory
    smollm2:135m, hf:…, file:…  a ref, in any spelling that `parse_ref` takes
    chat@gpu1, hf:a/b@cuda      either on one node, or on those with a tag
    (nothing)                   the model that the inventory has for each node

Rules
- What exists decides how a name is read: a whole name comes before one with a node, since a ref may hold an @ itself.
- Nobody makes a node fetch a file by asking for it: only refs that a catalog has, that the inventory names and built-in
  ones are known.
- What a client may not use does not exist for it, neither in answers nor in hints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rbee.base.errors import NodeError, RbeeError
from rbee.gateway.base.views import NodeState, NodeView, Target, WorkerView
from rbee.inventory import Inventory
from rbee.inventory.aliases import ModelAlias
from rbee.models.ref import DEFAULT_MODEL, built_in, parse_ref
from rbee_remote.protocol import ErrorCode, WorkerState

#: How many of the nearest names an error tells.
_NEAREST = 3
#: Targets of one name: a chain of fallbacks can be no longer.
_MOST_TARGETS = 16
_SERVES = frozenset({WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY})


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name means. asked: as the client wrote it. name: the alias or canonical ref, without a node.

    alias: whose system prompt and sampling are for the request, None for none. targets: as in Wanted, at least one.
    """

    asked: str
    name: str
    targets: tuple[Target, ...]
    alias: ModelAlias | None = None


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as `/v1/models` lists it. name: what a request says for it. model: a canonical ref, another than the name
    for an alias. nodes: those that have it on their disks, and may serve it; loaded: those where a worker serves it.

    ctx: tokens, the most that a worker of it has, else what it was trained for, else 0. size: bytes, 0 while unknown.
    capabilities: as in `abilities`; none while unknown. added_at: Unix seconds, 0 for unknown.
    """

    name: str
    model: str
    nodes: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    ctx: int = 0
    trained_ctx: int = 0
    size: int = 0
    capabilities: tuple[str, ...] = ()
    quantization: str = ""
    added_at: float = 0.0
    is_alias: bool = False


def resolve(
    asked: str | None, inventory: Inventory, nodes: Sequence[NodeView], allowed: frozenset[str] = frozenset()
) -> Resolved:
    """What a request's `model` means. nodes: those of the gateway, in the inventory's order. allowed: names and refs
    that the client may use, empty for all.

    Raises NodeError MODEL_NOT_FOUND with the nearest names.
    """
    names = _Names(inventory, nodes, allowed)
    asked = (asked or "").strip()
    if not asked:
        return names.default()
    if found := names.find(asked, names.all_nodes):
        return replace(found, asked=asked)
    name, at, place = asked.rpartition("@")
    if at and name and (whole := names.find(name, names.all_nodes)):
        there = names.places(place)
        if found := names.find(name, there) if there else None:
            return replace(found, asked=asked)
        raise names.not_there(whole.name, place, bool(there))
    raise names.not_found(asked)


def listing(
    inventory: Inventory, nodes: Sequence[NodeView], allowed: frozenset[str] = frozenset()
) -> tuple[ModelEntry, ...]:
    """The aliases in the inventory's order, then what the nodes' catalogs have, by ref. allowed: as of `resolve`."""
    names = _Names(inventory, nodes, allowed)
    aliases = [(name, names.find(name, names.all_nodes)) for name in inventory.models]
    there = {ref for node in nodes for ref, info in node.models.items() if not info.meta.adapter}
    refs = sorted(there - inventory.models.keys())
    return (
        *(_entry(name, found.targets[0], nodes, is_alias=True) for name, found in aliases if found),
        *(_entry(ref, Target(ref, names.all_nodes), nodes, is_alias=False) for ref in refs if names.may_use(ref)),
    )


class _Names:
    """The names that a client has. all_nodes: names of the gateway's nodes, in order."""

    def __init__(self, inventory: Inventory, nodes: Sequence[NodeView], allowed: frozenset[str]) -> None:
        self._inventory = inventory
        self._nodes = nodes
        self._allowed = frozenset(_canonical(name) or name for name in allowed) | allowed
        self.all_nodes = tuple(node.name for node in nodes)

    def may_use(self, name: str) -> bool:
        return not self._allowed or name in self._allowed

    def find(self, name: str, there: tuple[str, ...]) -> Resolved | None:
        """An alias or a ref, on the nodes `there`; None for what is not known, not allowed, or on none of them."""
        alias = self._inventory.models.get(name)
        known = name if alias else self._known_ref(name)
        if not known or not self.may_use(known):
            return None
        targets = self._targets(known, there)
        return Resolved(name, known, targets, alias) if targets else None

    def default(self) -> Resolved:
        """The model of each node's own entry; where they have several, the one of the first comes first."""
        by_model: dict[str, list[str]] = {}
        for name in self.all_nodes:
            node = self._inventory.nodes.get(name)
            ref = _canonical(node.model if node and node.model else DEFAULT_MODEL)
            if ref and self.may_use(ref):
                by_model.setdefault(ref, []).append(name)
        if not by_model:
            raise self.not_found("")
        targets = tuple(Target(model, tuple(there)) for model, there in by_model.items())
        return Resolved("", targets[0].model, targets)

    def places(self, place: str) -> tuple[str, ...]:
        """The gateway's nodes that a node's name means, or else a tag."""
        return (place,) if place in self.all_nodes else self._tagged(place)

    def _tagged(self, tag: str) -> tuple[str, ...]:
        return tuple(node.name for node in self._nodes if tag in node.tags)

    def _known_ref(self, name: str) -> str | None:
        ref = _canonical(name)
        if ref is None:
            return None
        is_known = ref in built_in() or any(ref in node.models for node in self._nodes)
        return ref if is_known or ref in self._named() else None

    def _named(self) -> set[str]:
        """The refs that the inventory names."""
        said = [alias.model for alias in self._inventory.models.values()]
        said += [node.model for node in self._inventory.nodes.values() if node.model]
        return {ref for text in said if (ref := _canonical(text))}

    def _targets(self, name: str, there: tuple[str, ...]) -> tuple[Target, ...]:
        """For a name and what it falls back to, each once."""
        targets: list[Target] = []
        names, seen = [name], {name}
        while names and len(targets) < _MOST_TARGETS:
            each = names.pop(0)
            alias = self._inventory.models.get(each)
            ref = _canonical(alias.model if alias else each)
            target = self._target(alias, ref, there) if ref else None
            if target and target not in targets:
                targets.append(target)
            after = [other for other in alias.fallbacks if other not in seen] if alias else []
            seen.update(after)
            names[:0] = after
        return tuple(targets)

    def _target(self, alias: ModelAlias | None, ref: str, there: tuple[str, ...]) -> Target | None:
        nodes = there
        if alias and alias.nodes:
            may = {each for each in alias.nodes if not each.startswith("@")}
            may.update(*(self._tagged(each[1:]) for each in alias.nodes if each.startswith("@")))
            nodes = tuple(name for name in there if name in may)
        elif ref.startswith("file:") and ref not in self._named():  # a path means something where it is
            has = {node.name for node in self._nodes if ref in node.models}
            nodes = tuple(name for name in there if name in has)
        if not nodes:
            return None
        return Target(ref, nodes, alias.load, alias.keep_alive_s) if alias else Target(ref, nodes)

    def not_found(self, asked: str) -> NodeError:
        what = f"there is no model {_shown(asked)}" if asked else "no model was named, and none is the default"
        if not self._allowed and asked.lower().startswith(("hf:", "https:", "file:")):
            what = f"no node has {_shown(asked)}, and the inventory does not name it"
        return NodeError(ErrorCode.MODEL_NOT_FOUND, what, hint=self._nearest(asked), details={"model": asked[:200]})

    def not_there(self, name: str, place: str, is_place: bool) -> NodeError:
        """place: what stands behind the @; is_place: it is a node or a tag."""
        if is_place:
            what, hint = (
                f"{_shown(name)} is not for {_shown(place)}",
                f"leave out @{place} for any node that may serve it",
            )
        else:
            tags = sorted(set().union(*(node.tags for node in self._nodes)))
            what = f"there is no node and no tag {_shown(place)}"
            hint = f"nodes and tags: {', '.join([*self.all_nodes, *tags])}"
        return NodeError(ErrorCode.MODEL_NOT_FOUND, what, hint=hint, details={"model": f"{name}@{place}"[:200]})

    def _nearest(self, asked: str) -> str:
        refs = {ref for node in self._nodes for ref in node.models} | self._named() | set(built_in())
        known = [name for name in [*self._inventory.models, *sorted(refs)] if self.may_use(name)]
        if not known:
            return "the API key is for models alone that are not here"
        near = difflib.get_close_matches(asked.lower()[:200], known, n=_NEAREST, cutoff=0.5)
        return f"did you mean {_or(near)}?" if near else f"there are {', '.join(known[: 4 * _NEAREST])}"


def _entry(name: str, target: Target, nodes: Sequence[NodeView], *, is_alias: bool) -> ModelEntry:
    there = [node for node in nodes if node.name in target.nodes]
    infos = [(node, node.models[target.model]) for node in there if target.model in node.models]
    workers = [worker for node in there if node.state is NodeState.UP for worker in node.workers]
    serving = [worker for worker in workers if worker.model == target.model and worker.state in _SERVES]
    info = infos[0][1] if infos else None
    trained = info.meta.n_ctx_train if info else 0
    return ModelEntry(
        name=name,
        model=target.model,
        nodes=tuple(node.name for node, _ in infos),
        loaded=_loaded(serving),
        ctx=max((worker.ctx for worker in serving), default=trained),
        trained_ctx=trained,
        size=info.size if info else 0,
        capabilities=info.meta.able_as(target.load.over(infos[0][0].load).pooling) if info else (),
        quantization=info.meta.quantization if info else "",
        added_at=min((each.added_at for _, each in infos), default=0.0),
        is_alias=is_alias,
    )


def _loaded(serving: Iterable[WorkerView]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(worker.key.node for worker in serving))


def _canonical(text: str) -> str | None:
    """The canonical ref of a text; that of a name which is not built in is the name itself, since a catalog may have
    it. None for what cannot be a ref."""
    try:
        return parse_ref(text).canonical
    except NodeError:
        return text.lower()
    except RbeeError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")


def _or(names: Sequence[str]) -> str:
    return " or ".join(", ".join(names).rsplit(", ", 1))
