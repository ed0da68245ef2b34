"""Split GGUF files: `NAME-00001-of-00003.gguf` and what lies beside it are one model. Pure; of names alone.

Rules
- A model is named by its first part; whoever names another part means that model.
- `NAME-00001-of-00001.gguf` is whole, and a file like any other.
- A model in parts is as a whole known by one digest, made of the parts' SHA-256 in their order: two nodes whose parts
  are the same have the same model.

The form of the names is llama.cpp's (`llama_split_path`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable

#: More than any model has; a name that claims more is no part's.
MAX_PARTS = 512

_PART = re.compile(
    r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<end>\.gguf)", re.IGNORECASE | re.DOTALL
)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A part's name, taken apart. number: from 1. stem: what stands before the numbers, with its folders."""

    stem: str
    number: int
    count: int
    end: str = ".gguf"

    @property
    def name(self) -> str:
        return f"{self.stem}-{self.number:05}-of-{self.count:05}{self.end}"

    @property
    def all(self) -> tuple[str, ...]:
        """The names of all parts, in order."""
        end = f"-of-{self.count:05}{self.end}"
        return tuple(f"{self.stem}-{number:05}{end}" for number in range(1, self.count + 1))


@dataclasses.dataclass(frozen=True, slots=True)
class FileGroup:
    """What is loaded as one model: a whole file, or the parts of a split one in their order.

    files: of a split one all that there have to be; missing: those of them that are not there.
    """

    files: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """By which it is named: the file's, or the first part's."""
        return self.files[0]

    @property
    def is_whole(self) -> bool:
        return not self.missing

    @property
    def is_split(self) -> bool:
        return len(self.files) > 1


def part_of(name: str) -> Part | None:
    """`name` (or a path that ends with one) as a part's; None for a whole file's."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    number, count = int(found["number"]), int(found["count"])
    if not 1 <= number <= count or not 2 <= count <= MAX_PARTS:
        return None
    return Part(found["stem"], number, count, found["end"])


def parts_of(name: str) -> tuple[str, ...]:
    """All files of the model that `name` is a file of, in order: of a whole one itself."""
    part = part_of(name)
    return part.all if part else (name,)


def first_part(name: str) -> str:
    """The file by which the model is named that `name` is a file of."""
    part = part_of(name)
    return dataclasses.replace(part, number=1).name if part else name


def numbered(name: str, number: int, count: int) -> str:
    """The name of part `number` of `count`, for a model whose whole file would be `name`; that itself for one of 1."""
    if count == 1:
        return name
    stem, dot, end = name.rpartition(".")
    return Part(stem, number, count, f"{dot}{end}").name


def grouped(names: Iterable[str]) -> list[FileGroup]:
    """Models among the files of a folder or a repository, each once, in the order of their first mention."""
    there = dict.fromkeys(names)
    groups = [parts_of(first) for first in dict.fromkeys(map(first_part, there))]
    return [FileGroup(files, tuple(file for file in files if file not in there)) for files in groups]


def digest_of_parts(sha256s: Iterable[str]) -> str:
    """What stands for a model's SHA-256: of one file that itself, of parts the SHA-256 of theirs, a line each."""
    found = tuple(sha256s)
    if len(found) == 1:
        return found[0]
    return hashlib.sha256("".join(f"{sha256}\n" for sha256 in found).encode()).hexdigest()
