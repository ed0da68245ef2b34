"""Models of other programs on a node: GET /v1/models/elsewhere."""

from __future__ import annotations

import dataclasses

from rbee_remote.protocol.models import Source
from rbee_remote.protocol.quants import NotChosen, choose


@dataclasses.dataclass(frozen=True, slots=True)
class FoundElsewhere:
    """ref: `ollama:NAME:TAG`, "" of other programs. path: absolute. program: whose it is, in words. sha256: as the
    program says, "" where it does not. repo, file: of the hub, "" where they are not known."""

    ref: str
    path: str
    size: int
    program: str
    sha256: str = ""
    repo: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """By which it can be asked for."""
        return self.ref or (f"hf:{self.repo}:{self.file}" if self.repo else f"file:{self.path}")


def match(found: list[FoundElsewhere], model: str, sources: tuple[Source, ...], sha256: str) -> FoundElsewhere | None:
    """The file that a ref stands for: by its own name, by the checksum, or by repository and file."""
    for each in found:
        if (each.ref and each.ref == model) or (sha256 and each.sha256 == sha256):
            return each
    for source in sources:
        # With a checksum only that decides; a revision may have another file of that name.
        if source.kind != "hf" or sha256 or source.revision or not source.file:
            continue
        there = {each.file: each for each in found if each.repo.lower() == source.repo.lower() and not each.ref}
        try:
            return there[choose({name: each.size for name, each in there.items()}, source.file, source.repo).name]
        except NotChosen:
            continue
    return None
