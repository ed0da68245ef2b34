"""What the hive and its `measure` process say to each other: how much memory llama.cpp would take. Standard library."""

from __future__ import annotations

import dataclasses

from rbee_remote.protocol import WorkerOptions


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """ctx: tokens per slot."""

    ctx: int
    slots: int


@dataclasses.dataclass(frozen=True, slots=True)
class MeasureRequest:
    """What `measure` reads on stdin. path: of the model. options: but for ctx and slots, which `points` say.
    sandbox: as in SpawnRequest.
    """

    path: str
    options: WorkerOptions
    points: tuple[Point, ...]
    sandbox: str = "auto"


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What llama.cpp says it would take at one point, in bytes.

    kv: the KV cache and all recurrent states. host_compute: of the compute and output buffers in RAM, what a worker
    writes to that asks for one token's logits per slot; device_compute: those on GPUs, whole.
    """

    at: Point
    kv: int
    host_compute: int
    device_compute: int


@dataclasses.dataclass(frozen=True, slots=True)
class MeasureAnswer:
    """process: resident bytes of the measuring process, which held llama.cpp and the model's vocabulary, no tensors.

    repacked: whether weights are rearranged for the processor; an embedding that is the output's matrix too is kept
    twice then.
    """

    process: int
    repacked: bool
    points: tuple[Measured, ...]
