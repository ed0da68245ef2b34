"""What the hive and its `ggml_gpus` process say to each other: the GPUs that ggml finds. Standard library."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class GgmlGpu:
    """A GPU as ggml sees it. id: ggml's own name for it, Vulkan0. name: what its maker calls it. backend: ours.

    integrated: its memory is the machine's. Bytes; free is what the driver would give this process now. pci: its
    address, 0000:c1:00.0, "" where ggml does not know it.
    """

    id: str
    name: str
    backend: str
    integrated: bool
    total: int
    free: int
    pci: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class GgmlAnswer:
    gpus: tuple[GgmlGpu, ...]
