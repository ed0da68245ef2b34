"""What a worker and its `render` processes say to each other, and the bounds that both know. Standard library.

Frames: four bytes, big-endian, for the length, and JSON in UTF-8. The first one to `render` is {"template", "bos",
"eos", "special", "user_defined"}, each after it {"messages", "tools", "chat"}; each is answered with the fields of
`Rendered`, {"error"} as RemoteError.encode(), or {"bound": "memory" | "output"}.
"""

from __future__ import annotations

import json
import struct
from typing import Any

#: Seconds of processor time for one request; the largest chats that a body holds take a tenth of it.
CPU_S = 4
#: Of address space, some 25 MB of it Python and Jinja. A body of 8 MB is 32 MB of text at most, held some times.
MEMORY_BYTES = 512 * 2**20

_LENGTH = struct.Struct(">I")
HEAD_BYTES = _LENGTH.size


def pack(value: Any) -> bytes:
    """A frame. Halves of characters pass: what is no text is somebody else's to refuse."""
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(data)) + data


def unpack(data: bytes) -> Any:
    """The value of a frame's JSON. Raises ValueError, RecursionError."""
    return json.loads(data.decode("utf-8", "surrogatepass"))


def length_of(head: bytes) -> int:
    """head: the first four bytes of a frame."""
    (length,) = _LENGTH.unpack(head)
    return int(length)


def most_text(request: bytes) -> int:
    """Characters that a prompt may have. Templates write some dozens around a message, and tools with their own
    indentation; sixteen times what came in is more than any of them."""
    return 2**20 + 16 * len(request)
