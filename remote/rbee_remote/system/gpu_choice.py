"""Which of the GPUs that are there a worker gets: the hive decides by this, and the worker comes to the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions


class Gpu(Protocol):
    """id: ggml's name for it, CUDA0. name: what its maker calls it."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...


class Placed(Protocol):
    """is_integrated: its memory is the machine's."""

    @property
    def is_integrated(self) -> bool: ...


G = TypeVar("G", bound=Gpu)
P = TypeVar("P", bound=Placed)


def used_ones(there: Sequence[P]) -> Sequence[P]:
    """Without integrated GPUs, unless there is no other: llama.cpp's own rule. A model that is split between both is
    as slow as the slower one."""
    return [gpu for gpu in there if not gpu.is_integrated] or there


def choose_gpus(there: Sequence[G], options: WorkerOptions) -> tuple[G, ...]:
    """Those that the options name, by ggml's name or by their number among `there`, in that order; all for none.

    Raises RemoteError USAGE, listing what there is, for one that is not there or named twice, and for shares of another
    number.
    """
    named = [_number(there, name) for name in options.devices] or range(len(there))
    if len(set(named)) < len(named):
        raise RemoteError(ErrorCode.USAGE, f"a device is named twice: {', '.join(options.devices)}")
    chosen = tuple(there[number] for number in named)
    if options.tensor_split and len(options.tensor_split) != len(chosen):
        raise RemoteError(
            ErrorCode.USAGE,
            f"tensor_split has {len(options.tensor_split)} shares for {len(chosen)} GPUs",
            hint=f"one for each of {', '.join(gpu.id for gpu in chosen)}, or choose some with --device",
        )
    return chosen


def _number(there: Sequence[Gpu], name: str) -> int:
    for number, gpu in enumerate(there):
        if name == str(number) or name.lower() == gpu.id.lower():
            return number
    raise RemoteError(
        ErrorCode.USAGE,
        f"there is no device {name!r} on this node",
        hint=f"there are {', '.join(f'{gpu.id} ({gpu.name})' for gpu in there)}",
        details={"device": name, "available": [gpu.id for gpu in there]},
    )
