"""The head of a GGUF file: its keys and where its tensors lie. Standard library only.

The gguf library's own reader makes a numpy array of every token of a vocabulary, which takes seconds and hundreds of
megabytes, and believes every count. This one skips what nobody asks for, and what a file claims costs no more than the
bytes that are there. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: More than any model has; a file that claims more is damaged or means harm.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
#: Bytes of a key's or tensor's name; llama.cpp takes 64 for a tensor's.
MAX_NAME = 1 << 10
MAX_DIMENSIONS = 4

#: What is kept of a value: strings and lists up to this many bytes and elements. Vocabularies and templates are longer.
_KEPT = 4096
#: … and of all of them together: what is kept of a number takes eight times the memory that it takes in the file.
_KEPT_IN_ALL = 1 << 22

_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """kind: the number of its ggml type. offset: of its data, from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """values: by key; None for what is too long to keep. lengths: of the arrays, by key. size: bytes of the file."""

    values: dict[str, Any]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    size: int


def read_gguf(path: Path) -> GgufFile:
    """Raises ValueError for what is no GGUF or ends too early, OSError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return Head(data).read()
        except struct.error as error:
            raise ValueError("it ends within its header") from error


class Head:
    """A position that moves through the head of the file."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._at = 0
        self.lengths: dict[str, int] = {}
        self._room = _KEPT_IN_ALL

    def begin(self) -> tuple[int, int]:
        """How many tensors and keys the file claims to have. Raises ValueError, struct.error."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, n_tensors, n_keys = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3):
            raise ValueError(f"it is of GGUF version {version}, not 2 or 3")
        if n_keys > MAX_KEYS or n_tensors > MAX_TENSORS:
            raise ValueError(f"its header claims {n_keys} keys and {n_tensors} tensors")
        return n_tensors, n_keys

    def read(self) -> GgufFile:
        n_tensors, n_keys = self.begin()
        values = dict(self.entry() for _ in range(n_keys))
        tensors = [self._tensor() for _ in range(n_tensors)]
        begin = self._data_begin(values.get("general.alignment", 32))
        placed = tuple(Tensor(tensor.name, tensor.shape, tensor.kind, begin + tensor.offset) for tensor in tensors)
        return GgufFile(values, self.lengths, placed, len(self._data))

    def _data_begin(self, alignment: Any) -> int:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}, which is not a power of 2")
        return -(-self._at // alignment) * alignment

    def entry(self) -> tuple[str, Any]:
        key, kind = self._name(), self._take("I")
        return key, self._array(key) if kind == _ARRAY else self._value(kind)

    def _array(self, key: str) -> list[Any] | None:
        kind, count = self._take("I"), self._take("Q")
        self.lengths[key] = count
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._take("Q"))
            return None
        code = _code(kind)
        if not self._keeps(count):
            self._skip(count * struct.calcsize(f"<{code}"))
            return None
        return [self._take(code) for _ in range(count)]

    def _value(self, kind: int) -> Any:
        if kind != _STRING:
            return self._take(_code(kind))
        length = self._take("Q")
        return self._text(length) if self._keeps(length) else self._skip(length)

    def _keeps(self, count: int) -> bool:
        """Whether there is room for that many bytes or elements, which are taken off it."""
        kept = count <= min(_KEPT, self._room)
        self._room -= count if kept else 0
        return kept

    def _tensor(self) -> Tensor:
        """offset: from the start of the data."""
        name, dimensions = self._name(), self._take("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"a tensor has {dimensions} dimensions")
        shape = tuple(self._take("Q") for _ in range(dimensions))
        return Tensor(name, shape, self._take("I"), self._take("Q"))

    def _name(self) -> str:
        length = self._take("Q")
        if length > MAX_NAME:
            raise ValueError(f"a name in it has {length} bytes")
        return self._text(length)

    def _text(self, length: int) -> str:
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at].decode()

    def _skip(self, length: int) -> None:
        if length > len(self._data) - self._at:
            raise ValueError("it ends within its header")
        self._at += length

    def _take(self, code: str) -> Any:
        form = f"<{code}"
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value


def _code(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value in it is of the unknown kind {kind}")
    return _SCALARS[kind]
