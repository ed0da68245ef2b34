"""What the first bytes of a GGUF file say, where the rest of it is not there."""

from __future__ import annotations

import contextlib
import struct

from rbee_remote.gguf.file import MAX_KEYS, GgufFile, Head


def first_values(data: bytes) -> GgufFile:
    """The keys that are whole in `data`, and no tensors. Raises ValueError for what is no GGUF."""
    head = Head(data)
    try:
        _, n_keys = head.begin()
    except struct.error as error:
        raise ValueError("it ends within its header") from error
    values = {}
    with contextlib.suppress(ValueError, struct.error):  # where the bytes end
        for _ in range(min(n_keys, MAX_KEYS)):
            key, value = head.entry()
            values[key] = value
    return GgufFile(values, head.lengths, (), len(data))
