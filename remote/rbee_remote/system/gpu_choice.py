"""Which of the GPUs that are there a worker gets: the hive decides by this, and the worker comes to the same ones."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from rbee_remote.system import gpu


class Gpu(Protocol):
    """id: ggml's name for it, CUDA0. name: what its maker calls it. uuid: the driver's, "" where nobody knows."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def uuid(self) -> str: ...


class Placed(Protocol):
    """integrated: its memory is the machine's."""

    @property
    def integrated(self) -> bool: ...


G = TypeVar("G", bound=Gpu)
P = TypeVar("P", bound=Placed)


def used_ones(there: Sequence[P]) -> Sequence[P]:
    """Without integrated GPUs, unless there is no other: llama.cpp's own rule. A model that is split between both is
    as slow as the slower one."""
    return [each for each in there if not each.integrated] or there


#: A UUID begins so; fewer letters than these tell nothing.
_UUIDS = ("gpu-", "mig-")


def choose_gpus(there: Sequence[G], options: WorkerOptions) -> tuple[G, ...]:
    """Those that the options name, by ggml's name, the driver's number, or the beginning of a UUID, in that order; all
    for none.

    Raises RemoteError USAGE, listing what there is, for one that is not there or named twice, for a beginning of
    several UUIDs, and for shares of another number.
    """
    chosen = tuple(_find(there, name) for name in options.devices) or tuple(there)
    if len({gpu.id for gpu in chosen}) < len(chosen):
        raise RemoteError(ErrorCode.USAGE, f"a device is named twice: {', '.join(options.devices)}")
    if options.tensor_split and len(options.tensor_split) != len(chosen):
        raise RemoteError(
            ErrorCode.USAGE,
            f"tensor_split has {len(options.tensor_split)} shares for {len(chosen)} GPUs",
            hint=f"one for each of {', '.join(gpu.id for gpu in chosen)}, or choose some with --device",
        )
    return chosen


def are_named(options: WorkerOptions) -> bool:
    """Whether the choice is not ours."""
    return bool(options.devices)


def with_gpus(options: WorkerOptions, gpus: Sequence[Gpu]) -> WorkerOptions:
    """Named as the hive names them, whatever they were asked for by: then equal choices are equal."""
    return replace(options, devices=tuple(gpu.id for gpu in gpus))


def seeing_no_others(options: WorkerOptions, gpus: Sequence[gpu.Gpu]) -> WorkerOptions:
    """For a process that sees its own GPUs alone, which ggml counts anew there; what cannot be hidden goes by name."""
    return replace(options, devices=tuple(each.id for each in gpus if not each.counted_anew))


def _find(there: Sequence[G], name: str) -> G:
    low = name.lower()
    matches = [gpu for gpu in there if low in (gpu.id.lower(), _number(gpu))]
    if not matches and low.startswith(_UUIDS):
        matches = [gpu for gpu in there if gpu.uuid.lower().startswith(low)]
    if len(matches) == 1:
        return matches[0]
    raise RemoteError(
        ErrorCode.USAGE,
        f"{name!r} could be {' or '.join(gpu.uuid for gpu in matches)}"
        if matches
        else f"there is no device {name!r} on this node that rbee may use",
        hint=f"there are {', '.join(f'{gpu.id} ({gpu.name})' for gpu in there)}",
        details={"device": name, "available": [gpu.id for gpu in there]},
    )


def _number(gpu: Gpu) -> str:
    """1 of CUDA1, 0.1 of CUDA0.1."""
    return gpu.id.lstrip(string.ascii_letters)
