"""What this rbee is made of and puts on nodes, as far as a SHA-256 says what that is: for `rbee version -v`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

from rbee.models.ref import built_in
from rbee.setup.base import requirements
from rbee.setup.base.payload import build_payload


@dataclass(frozen=True, slots=True)
class Pinned:
    """One thing with a fixed content. part: what it belongs to.

    sha256: of each file that may stand for it, lower-case hex; several for what has a file for each platform.
    installed: the version that is here, of what is part of the keeper; "" where it is not installed. marker: which
    platforms and Pythons it is for, "" for all.
    """

    part: str
    name: str
    version: str
    sha256: tuple[str, ...]
    installed: str = ""
    marker: str = ""

    def by(self) -> str:
        """The hash, or how many there are; for people."""
        return self.sha256[0] if len(self.sha256) == 1 else f"one of {len(self.sha256)} files"


def pinned() -> Iterator[Pinned]:
    """All of it: the payload (its sources, as one zip file), the locks' lines, and the models that have a hash."""
    payload = build_payload()
    yield Pinned("node", "payload", payload.digest, (payload.sha256,))
    yield _line("node", requirements.uv())
    yield _line("node", requirements.llama())
    yield from (_line("node", line) for line in requirements.read(requirements.BASE))
    yield from (_line("node", line) for line in requirements.read(requirements.CONSTRAINTS))
    yield from (_line("build", line) for line in requirements.read(requirements.BUILD))
    yield from (_line("keeper", line, _installed(line.name)) for line in requirements.keeper())
    yield from (Pinned("model", model.name, "", (model.sha256,)) for model in built_in().values() if model.sha256)


def _line(part: str, line: requirements.Locked, installed: str = "") -> Pinned:
    hashes = tuple(value.removeprefix("sha256:") for value in line.hashes)
    return Pinned(part, line.name, line.version, hashes, installed, line.marker)


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
