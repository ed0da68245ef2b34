"""Whose builds of llama.cpp may run where.

What a node built is code that the node chose. It goes back to that node, and to those whose `builds_from` in the
inventory names it; never to this machine, and never in place of what this machine built. The same holds for what an
index of wheels offers, where neither a hash nor a key says which of them are meant: nodes name it by its address.

What llama-cpp-python's own project releases runs everywhere, unless wheel_index = "off": it is whose source is built
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rbee.inventory import Node, WheelIndex

#: The index of llama-cpp-python's own releases, by the name that its wheels have in the cache.
OFFICIAL_URL = "https://abetlen.github.io/llama-cpp-python/whl"


@dataclass(frozen=True, slots=True)
class Builders:
    """Whose builds may run on a node, as `wheel.json` writes them. own: its own; "" is this machine, always trusted.

    indexes: where its inventory looks for prebuilt ones. machines: other nodes that may build for it.
    """

    own: str = ""
    others: frozenset[str] = frozenset()
    indexes: tuple[WheelIndex, ...] = ()
    machines: frozenset[str] = frozenset()

    @classmethod
    def of(cls, node: Node, nodes: Mapping[str, Node]) -> Builders:
        """This machine runs nothing that a node has built, whatever the inventory's defaults say."""
        vouched = {name for index in node.wheel_indexes for name in index.vouchers()}
        vouched |= {OFFICIAL_URL} if node.wheel_index == "on" else set()
        if node.is_local:
            return cls("", frozenset(vouched), node.wheel_indexes)
        others = (nodes[name] for name in node.builds_from if name in nodes)
        indexes = frozenset(name.rstrip("/") for name in node.builds_from if "://" in name)
        names = frozenset(_identity(other) for other in others if not other.is_local)
        return cls(_identity(node), names | indexes | vouched, node.wheel_indexes, names - {_identity(node)})

    def with_others(self, others: frozenset[str]) -> Builders:
        return replace(self, others=self.others | others)

    def include(self, built_on: str) -> bool:
        return built_on in ("", self.own) or built_on in self.others


def _identity(node: Node) -> str:
    """Its name and its pinned key: another machine of that name is another builder."""
    return f"{node.name} {node.host_key or node.host}"


#: This machine alone.
KEEPER = Builders()


@dataclass(frozen=True, slots=True)
class Place:
    """Where llama.cpp could be built. name: for the reader. why_not: what keeps it from that, "" for nothing."""

    name: str
    cores: int
    why_not: str = ""

    @property
    def said(self) -> str:
        return f"{self.name}: {self.why_not or f'{self.cores} core' + 's' * (self.cores > 1)}"


def best_place(places: Sequence[Place]) -> Place | None:
    """The one with most cores of those that can build; of several the first. None where there is none."""
    return max((place for place in places if not place.why_not), key=lambda place: place.cores, default=None)


def may_build_for(node: Node, nodes: Mapping[str, Node], *, anywhere: bool) -> list[Node]:
    """The other nodes that may build llama.cpp for this one. anywhere: whether a compiler for C++ is all it takes."""
    if node.is_local or not anywhere:
        return []
    named = (nodes[name] for name in dict.fromkeys(node.builds_from) if name in nodes and name != node.name)
    return [other for other in named if not other.is_local]


def who_built(built_on: str) -> str:
    """`built_on` as a user reads it and names it: a node, what vouches for a wheel of an index, or the index."""
    return built_on.partition(" ")[0] or "here"


def is_of_index(built_on: str) -> bool:
    """Whether a prebuilt one is meant: a hash, a key or an address answers for it. A node's name has no colon."""
    return ":" in built_on.partition(" ")[0]


def builds_itself(node: Node, elsewhere: str) -> str:
    """What to tell when a build on `node` begins. elsewhere: another node whose build would fit, "" for none."""
    if node.is_local:
        return "llama.cpp is built once"
    said = f"{node.name} builds llama.cpp once, for itself"
    if not elsewhere:
        return f'{said}; builds_from = ["{node.name}"] in the inventory lets another node use that'
    return f'{said}: what {elsewhere} built runs elsewhere only where builds_from = ["{elsewhere}"] says so'
