"""A GPU as a value: what placement, reports and readers of drivers have in common. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: How ggml names the devices of a maker's own backend; a number follows.
_GGML = {"nvidia": "CUDA", "amd": "ROCm"}
#: The `vendor` of one that only ggml knows, by Vulkan. Whichever the environment leaves has that number.
GGML = "vulkan"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device that a worker can be given: a GPU, or an instance of one that MIG has divided.

    index: the driver's, in the order of the PCI bus. Memory in MB (10**6 bytes). uuid: by which CUDA and ROCm take it,
    "" where the driver does not tell. instance: its number within the GPU `parent` (a UUID), None for a whole one.
    part: the ids of its GPU instance and compute instance, such as 1/0.
    integrated: it has no memory of its own; total and free are then those of the machine's RAM. pci: its address on
    the bus, 0000:c1:00.0, "" where nobody knows. reserved: its compute mode lets one process on it, and one is there,
    so that nothing is free however much memory is left.
    """

    index: int
    name: str
    total_mb: int
    free_mb: int
    vendor: str = "nvidia"
    uuid: str = ""
    instance: int | None = None
    parent: str = ""
    integrated: bool = False
    part: str = ""
    pci: str = ""
    reserved: bool = False

    @property
    def id(self) -> str:
        """ggml's name for the driver's GPU of this number, such as CUDA0; CUDA0.1 for an instance of it."""
        whole = f"{_GGML.get(self.vendor, 'Vulkan')}{self.index}"
        return whole if self.instance is None else f"{whole}.{self.instance}"

    @property
    def counted_anew(self) -> bool:
        """Whether a process can be shown this GPU alone, by a variable, for which it then is the first."""
        return self.vendor != GGML

    @property
    def visible_as(self) -> str:
        """What names it in CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES. A UUID means the same whatever is hidden."""
        return self.uuid or str(self.index)


@dataclass(frozen=True, slots=True)
class SilentGpu:
    """A GPU that is there and cannot be used. reason: a word of `rbee_remote.protocol.gpus.Reason`. said: the driver's
    own words."""

    index: int
    reason: str
    said: str = ""
