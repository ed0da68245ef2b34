"""What is looked for on the hub, and what was found: the `search` process's stdin and stdout."""

from __future__ import annotations

import dataclasses

#: Models of one search: each costs two requests.
MOST_FOUND = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """A node that models are to fit on. mb: of its memory, all of it, whoever has it now. gpus: 0 for RAM. free_mb: of
    that, what nobody has now, None where it is not known."""

    node: str
    mb: int
    gpus: int = 0
    free_mb: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SearchRequest:
    """words: as a user types them. limit: most models, from 1 to MOST_FOUND. token, endpoint: as in DownloadRequest.
    rooms: what it is to fit on, with ctx tokens for each of slots requests at once."""

    words: str
    limit: int
    rooms: tuple[Room, ...] = ()
    ctx: int = 32768
    slots: int = 1
    token: str = dataclasses.field(default="", repr=False)
    endpoint: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Fits:
    """needed_mb: None where the model does not say enough of itself for that. free: whether so much is free now, None
    where that is not known; idle workers give way to a model that needs their memory."""

    node: str
    fits: bool
    needed_mb: int | None = None
    free: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FoundQuant:
    """A model of a repository. file: its name, or the first part's. size: bytes of all parts, None where not known."""

    file: str
    quant: str
    size: int | None
    parts: int
    fits: tuple[Fits, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class FoundModel:
    """A repository. ctx: tokens per request that the fit was computed for, 0 where nothing is known of the model."""

    repo: str
    downloads: int
    gated: bool
    license: str
    architecture: str
    ctx: int
    quants: tuple[FoundQuant, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class SearchAnswer:
    """In the hub's order: what is downloaded most first."""

    models: tuple[FoundModel, ...]
