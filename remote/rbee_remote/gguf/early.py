"""What a model is for, by the beginning of its file, while the rest of it is still to come."""

from __future__ import annotations

from pathlib import Path

from rbee_remote.gguf.beginning import first_values
from rbee_remote.gguf.use import read_use
from rbee_remote.protocol.abilities import ADAPTER, abilities

#: Bytes that are looked at: what a model is stands before its vocabulary, which takes megabytes.
LOOKED_AT = 2**18


def first_abilities(path: Path) -> tuple[str, ...]:
    """As `abilities` has them; none where what is there does not tell. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(LOOKED_AT)
    try:
        values = first_values(head).values
    except ValueError:
        return ()
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        return ()
    if values.get("general.type") == ADAPTER:
        return (ADAPTER,)
    return abilities(architecture, read_use(architecture, values).pooling)
