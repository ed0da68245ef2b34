"""`[models.NAME]` of the inventory: a model under a name of the user's own, for the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rbee_remote.protocol import LoadOptions


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """model: a ref as the user wrote it. nodes: names and "@tag"s that may serve it, empty for all. load: how it is
    loaded; what it does not say is the node's. system: a system prompt for requests that bring none, "" for none.
    sampling: values for fields that a request's body leaves out, by their names there. fallbacks: names asked in turn
    where this one cannot be served. keep_alive_s: seconds, negative for never, None for the node's.
    """

    name: str
    model: str
    nodes: tuple[str, ...] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    system: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    keep_alive_s: float | None = None
