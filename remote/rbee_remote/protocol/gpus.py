"""What the payload's command `gpus` tells of a node's GPUs: a `GpuReport`. Standard library.

It states facts; what is wrong with them, and what mends it, the keeper says (`rbee.node.gpu_diagnosis`).
"""

from __future__ import annotations

import dataclasses
import enum


class Reason(str, enum.Enum):
    """Why a GPU, or its driver, cannot be used. Messages carry the word, so that a newer node may have others."""

    LOST = "lost"
    RESET = "reset"
    PERMISSION = "permission"
    POWER = "power"
    INTERRUPT = "interrupt"
    INFOROM = "inforom"
    TIMEOUT = "timeout"
    UNSUPPORTED = "unsupported"
    PROHIBITED = "prohibited"
    NO_INSTANCE = "no_instance"
    UNKNOWN = "unknown"
    #: Of the driver as a whole; NO_BINDING: nobody could ask it, there is no runtime yet.
    NOT_LOADED = "not_loaded"
    NO_LIBRARY = "no_library"
    MISMATCH = "mismatch"
    NO_BINDING = "no_binding"


@dataclasses.dataclass(frozen=True, slots=True)
class GpuHolder:
    """A process that holds memory of a GPU. mb: None where the driver does not say. command, user: "" for a process
    that cannot be seen from here, as those outside a container. ours: it is a worker of rbee's."""

    pid: int
    mb: int | None = None
    command: str = ""
    user: str = ""
    ours: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GpuSeen:
    """A GPU that answers, or a MIG instance of one. instance, parent: its number, and the UUID of that GPU.

    id: as `--device` takes it. Memory in MB (10**6 bytes), of RAM for
    one that is integrated. visible: whether workers may have it, by what the environment says (`GpuReport.limits`).

    None where the driver does not say: ecc: whether it is on; ecc_errors: uncorrected ones since the driver was
    loaded; persistence: whether the driver keeps the GPU initialised while nobody uses it.
    exclusive: its compute mode lets one process on it at a time; while one is there, nothing is free.
    """

    id: str
    index: int
    name: str
    vendor: str
    total_mb: int
    free_mb: int
    uuid: str = ""
    instance: int | None = None
    parent: str = ""
    integrated: bool = False
    visible: bool = True
    ecc: bool | None = None
    ecc_errors: int | None = None
    persistence: bool | None = None
    holders: tuple[GpuHolder, ...] = ()
    exclusive: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class GpuSilent:
    """A GPU that cannot be used. reason: of `Reason`. said: the driver's words."""

    index: int
    reason: str
    said: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Xid:
    """An error that NVIDIA's driver wrote to the kernel's log. pci: the GPU's address. count: how often since boot.
    text: of the last one."""

    code: int
    pci: str
    count: int
    text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class PciGpu:
    """A graphics controller on the PCI bus. vendor: nvidia, amd or intel. driver: the kernel's, "" for none."""

    vendor: str
    address: str
    driver: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class GpuReport:
    """driver: NVIDIA's version; loaded: that of its kernel module, which differs after an update without a reboot.
    cuda: the newest that it runs, such as "12.4". reason, said: why that driver tells nothing, of `Reason`, "" where it
    does. limits: what narrows the choice, such as "CUDA_VISIBLE_DEVICES=0 (Slurm job 7)". log_read: whether the
    kernel's log could be read, so that no `xids` means none. on_bus: whatever any driver says.
    """

    driver: str = ""
    loaded: str = ""
    cuda: str = ""
    reason: str = ""
    said: str = ""
    gpus: tuple[GpuSeen, ...] = ()
    silent: tuple[GpuSilent, ...] = ()
    xids: tuple[Xid, ...] = ()
    log_read: bool = False
    limits: str = ""
    on_bus: tuple[PciGpu, ...] = ()
