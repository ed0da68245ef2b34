"""Whose turn a step is, where not all who are ready can share it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Kind = TypeVar("Kind", bound=Hashable)
Item = TypeVar("Item")


@dataclass(slots=True)
class Turns(Generic[Kind]):
    """The kind whose last step lies longest back comes next, so that each has one after as many as there are kinds,
    also where others come and go."""

    _last: dict[Kind, int] = field(default_factory=dict)
    _steps: int = 0

    def take(self, items: Sequence[Item], kind_of: Callable[[Item], Kind]) -> list[Item]:
        """Those of the kind that has its turn; of kinds that are new, the one that stands first."""
        kinds = dict.fromkeys(map(kind_of, items))
        if len(kinds) < 2:
            return list(items)
        last = {kind: self._last.get(kind, self._steps) for kind in kinds}  # who comes, or comes again, is the last
        turn = min(kinds, key=last.__getitem__)
        self._steps += 1
        self._last = last | {turn: self._steps}
        return [item for item in items if kind_of(item) == turn]
