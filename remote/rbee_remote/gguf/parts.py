"""The parts of a split model as one file: the keys are the first one's, the tensors are spread over all. Pure.

`llama-gguf-split` writes into each part how many there are (split.count), which one it is (split.no, from 0) and how
many tensors all of them have (split.tensors.count). llama.cpp checks the first two while it loads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rbee_remote.gguf.file import GgufFile

_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def joined(files: Sequence[GgufFile]) -> GgufFile:
    """The model that a file is, or that parts make in this order. Raises ValueError where it is not whole."""
    if len(files) == 1:
        _check_alone(files[0])
    else:
        _check_parts(files)
    tensors = tuple(tensor for file in files for tensor in file.tensors)
    if not tensors:
        raise ValueError("it has no tensors")
    return dataclasses.replace(files[0], tensors=tensors, size=sum(file.size for file in files))


def _check_alone(file: GgufFile) -> None:
    count = file.values.get(_COUNT, 0)
    if not isinstance(count, int) or count > 1:
        raise ValueError(
            f"it is one of {_number(count)} parts of a split model, and its name does not say which: parts are found "
            "beside each other by names such as NAME-00001-of-00003.gguf"
        )


def _check_parts(files: Sequence[GgufFile]) -> None:
    """Raises ValueError unless the parts are all of one model, each where its name says."""
    for number, file in enumerate(files):
        count, place = file.values.get(_COUNT, 0), file.values.get(_NUMBER, 0)
        if count != len(files):
            said = f"one of {_number(count)} parts" if count else "no part of a split model"
            raise ValueError(f"by its name part {number + 1} is one of {len(files)}, and by its content {said}")
        if place != number:
            raise ValueError(f"the file that is named part {number + 1} is part {_shown(place)}")
    names = [tensor.name for file in files for tensor in file.tensors]
    claimed = [file.values.get(_TENSORS) for file in files]
    if len(set(names)) < len(names) or any(count not in (len(names), None) for count in claimed):
        raise ValueError("its parts are of different models: they do not have the tensors that they say")


def _number(count: object) -> str:
    """What a file says may be anything."""
    return str(count) if isinstance(count, int) else "an unknown number of"


def _shown(place: object) -> str:
    return str(place + 1) if isinstance(place, int) else "none"
