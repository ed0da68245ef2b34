"""What is wrong with a node's GPUs, judged from a `GpuReport`: every finding with the command that mends it. Pure.

Rules
- Nothing of it fails a node: models run on the other GPUs, or on the processor.
- What takes root says so; no command here is run by rbee.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rbee.node.finding import Finding
from rbee_remote.protocol.gpus import GpuHolder, GpuReport, GpuSeen, GpuSilent, Reason, Xid

#: By the words of `Reason`: what it means for a GPU, and what to do; {n} is its number.
_SILENT = {
    Reason.LOST: (
        "has fallen off the bus",
        "reboot the node (`sudo reboot`); where it comes again, check the GPU's seat, power and cooling",
    ),
    Reason.RESET: ("has to be reset", "end what uses it, then as root: nvidia-smi --gpu-reset -i {n}"),
    Reason.PERMISSION: (
        "may not be used by this user",
        "as root: usermod -aG video,render USER (see `ls -l /dev/nvidia* /dev/kfd /dev/dri`), and log in anew; in a "
        "job or container, ask for the GPU",
    ),
    Reason.POWER: ("lacks power", "connect the GPU's power cables, then reboot"),
    Reason.INTERRUPT: ("gets no interrupts", "see `sudo dmesg | grep NVRM`; update BIOS and driver, then reboot"),
    Reason.INFOROM: ("has a damaged infoROM", "see `nvidia-smi -i {n} -q`; the vendor can mend or replace it"),
    Reason.TIMEOUT: ("does not answer in time", "see `sudo dmesg | grep NVRM`; reboot the node"),
    Reason.UNSUPPORTED: (
        "does not tell its memory",
        "see `nvidia-smi -i {n} -q -d MEMORY`; `backend = \"vulkan\"` in the inventory may be able to use it",
    ),
    Reason.PROHIBITED: ("lets nobody compute", "as root: nvidia-smi -i {n} -c DEFAULT"),
    Reason.NO_INSTANCE: (
        "is in MIG mode and has no instance",
        "as root: `nvidia-smi mig -i {n} -lgip` lists profiles, `nvidia-smi mig -i {n} -cgi PROFILE -C` makes an "
        "instance; or `nvidia-smi -i {n} -mig 0` ends MIG mode",
    ),
}  # fmt: skip
_UNKNOWN = ("cannot be used", "see `nvidia-smi -i {n} -q` and `sudo dmesg | grep NVRM`; update the driver")

#: Of NVIDIA's driver as a whole.
_DRIVER = {
    Reason.MISMATCH: (
        "its library and its kernel module differ in version",
        "reboot; or, where nothing uses a GPU, as root: rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia, then "
        "modprobe nvidia",
    ),
    Reason.NOT_LOADED: (
        "its kernel module is not loaded",
        "as root: modprobe nvidia; after an update of the kernel, dkms autoinstall first",
    ),
    Reason.NO_LIBRARY: (
        "it is not installed",
        "install NVIDIA's driver (Debian: apt install nvidia-driver, Ubuntu: ubuntu-drivers install), then reboot",
    ),
    Reason.PERMISSION: ("this user may not use it", "as root: usermod -aG video USER, and log in anew"),
    Reason.TIMEOUT: ("it does not answer in time", "see `sudo dmesg | grep NVRM`; reboot the node"),
}

#: What NVIDIA's "XID Errors" has of the codes that are a machine's, not a program's.
_HARDWARE_XIDS = {
    48: "a memory error that ECC could not correct",
    61: "its microcontroller failed",
    62: "its microcontroller failed",
    63: "memory was taken out of use",
    64: "memory could not be taken out of use",
    74: "an NVLink error",
    79: "it fell off the bus",
    92: "many memory errors that ECC corrected",
    94: "a memory error that ended a program",
    95: "a memory error that may have touched every program",
    119: "its system processor does not answer",
    120: "its system processor failed",
}
_XID_FIX = (
    "see `sudo dmesg | grep Xid`; as root: nvidia-smi --gpu-reset, or reboot; where it comes again, replace the GPU"
)

_MAKERS = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}

#: The oldest drivers that run the toolkits which llama.cpp is compiled with (CUDA's release notes, "CUDA Driver").
_DRIVERS_OF = {12: "525", 13: "580"}
#: Of a GPU's memory: that others hold so much is worth a finding.
_TAKEN = 0.5


def findings(
    report: GpuReport, cudart: frozenset[int] = frozenset(), closed: frozenset[str] = frozenset()
) -> list[Finding]:
    """cudart: major versions of CUDA's runtime library that are installed. closed: files that this user may not open,
    which is said elsewhere."""
    return [
        *_driver(report),
        _those_there_are(report),
        *_limits(report),
        *(_silent(gpu) for gpu in report.silent if gpu.said not in closed),
        *_exclusive(report.gpus),
        *_taken(report.gpus),
        *_too_old(report, cudart),
        *_health(report.gpus),
        *(_xid(xid) for xid in report.xids),
        *_unread_log(report),
    ]


def tells(report: GpuReport) -> bool:
    """Whether it has more than a probe: something of a GPU, good or bad."""
    return bool(report.gpus or report.silent or report.xids or report.on_bus or list(_driver(report)))


def _those_there_are(report: GpuReport) -> Finding:
    names = ", ".join(_name(gpu) for gpu in report.gpus)
    if names:
        driver = f"; driver {report.driver}" if report.driver else ""
        return Finding("ok", "GPUs", f"{names}{driver}{f', CUDA {report.cuda}' if report.cuda else ''}")
    if not report.on_bus:
        none = "none answers" if report.reason == Reason.TIMEOUT else "none was found"
        return Finding("ok", "GPUs", f"{none}: models run on the CPU")
    there = ", ".join(f"{_MAKERS.get(gpu.vendor, gpu.vendor)} at {gpu.address}" for gpu in report.on_bus)
    if report.reason == Reason.NO_BINDING and any(gpu.driver == "nvidia" for gpu in report.on_bus):
        return Finding("ok", "GPUs", f"{there}; what it is shows once rbee has run there")
    return Finding("ok", "GPUs", f"{there}, whose driver tells nothing: models run on the CPU")


def _name(gpu: GpuSeen) -> str:
    memory = f"{gpu.free_mb} of {gpu.total_mb} MB {'of RAM ' if gpu.integrated else ''}free"
    return f"{gpu.id} {gpu.name} ({memory if gpu.total_mb else 'memory not known'})"


def _driver(report: GpuReport) -> Iterator[Finding]:
    """Without such a GPU no driver is needed; where the bus shows none, as in containers, only odd trouble is told."""
    theirs = [gpu for gpu in report.on_bus if gpu.vendor == "nvidia"]
    reason = report.reason
    if reason == Reason.NO_BINDING and theirs and all(gpu.driver != "nvidia" for gpu in theirs):
        reason = Reason.NO_LIBRARY.value
    usual = (Reason.NO_LIBRARY, Reason.NOT_LOADED, Reason.UNKNOWN)
    if reason in ("", Reason.NO_BINDING) or (not theirs and reason in usual):
        return
    meaning, fix = _by_word(_DRIVER, reason, (report.said, _UNKNOWN[1].format(n=0)))
    holders = sorted({gpu.driver for gpu in theirs if gpu.driver not in ("", "nvidia")})
    held = f" (the kernel gave the GPU to {', '.join(holders)})" if holders else ""
    loaded = f"; the module is {report.loaded}" if report.loaded and report.reason == Reason.MISMATCH else ""
    yield Finding("warn", "NVIDIA driver", f"{meaning}{held}{loaded}", fix)


def _limits(report: GpuReport) -> Iterator[Finding]:
    if not report.limits:
        return
    shown = [gpu.id for gpu in report.gpus if gpu.visible]
    detail = f"{report.limits} leaves {', '.join(shown) or 'none'} of {len(report.gpus)}"
    if shown or not report.gpus:
        yield Finding("ok", "visible GPUs", detail)
    else:
        fix = "unset it where it is set (a login script, `env` in the inventory), or ask the batch system for a GPU"
        yield Finding("warn", "visible GPUs", detail, fix)


def _silent(gpu: GpuSilent) -> Finding:
    meaning, fix = _by_word(_SILENT, gpu.reason, _UNKNOWN)
    said = f" ({gpu.said})" if gpu.said else ""
    return Finding("warn", f"GPU {gpu.index}", f"{meaning}{said}: it is left out", fix.format(n=gpu.index))


Words = tuple[str, str]


def _by_word(table: Mapping[Reason, Words], word: str, otherwise: Words) -> Words:
    """word: a newer node may have others."""
    return next((words for reason, words in table.items() if reason.value == word), otherwise)


def _exclusive(gpus: Sequence[GpuSeen]) -> Iterator[Finding]:
    """Of those only that answer: one that is prohibited is silent."""
    for gpu in gpus:
        if not gpu.exclusive:
            continue
        who = ", ".join(_holder(holder) for holder in gpu.holders[:3])
        now = f", and that is {who}" if who else ": one worker, and nobody beside it"
        detail = f"EXCLUSIVE_PROCESS lets one process compute{now}"
        yield Finding("warn", f"{gpu.id} compute mode", detail, f"as root: nvidia-smi -i {gpu.index} -c DEFAULT (or 0)")


def _taken(gpus: Sequence[GpuSeen]) -> Iterator[Finding]:
    for gpu in gpus:
        others = [holder for holder in gpu.holders if not holder.ours]
        ours = sum(holder.mb or 0 for holder in gpu.holders if holder.ours)
        taken = gpu.total_mb - gpu.free_mb - ours
        if gpu.integrated or not gpu.total_mb or taken < gpu.total_mb * _TAKEN or (gpu.exclusive and gpu.holders):
            continue
        who = ", ".join(_holder(holder) for holder in others[:3]) or "programs that the driver does not name"
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        fix = "end them, wait, or choose another GPU with --device; rbee counts what is free"
        yield Finding("warn", f"{gpu.id} memory", f"{taken} of {gpu.total_mb} MB are held by {who}{more}", fix)


def _holder(holder: GpuHolder) -> str:
    size = "" if holder.mb is None else f", {holder.mb} MB"
    if not holder.command:
        return f"pid {holder.pid} (not to be seen from here{size})"
    return f"pid {holder.pid} ({holder.command}, {holder.user}{size})"


def _too_old(report: GpuReport, cudart: frozenset[int]) -> Iterator[Finding]:
    major = int(report.cuda.partition(".")[0]) if report.cuda.partition(".")[0].isdigit() else 0
    if not major:
        return
    oldest = min(_DRIVERS_OF)
    if major < oldest:
        detail = f"driver {report.driver} runs CUDA up to {report.cuda}, and rbee's builds need {oldest}"
        yield Finding("warn", "CUDA", detail, f"install driver {_DRIVERS_OF[oldest]} or newer")
    elif cudart and min(cudart) > major:
        wanted = min(cudart)
        detail = f"driver {report.driver} runs CUDA up to {report.cuda}, and the runtime library installed is {wanted}"
        newer = f"install driver {_DRIVERS_OF[wanted]} or newer" if wanted in _DRIVERS_OF else "install a newer driver"
        yield Finding("warn", "CUDA", detail, f"{newer}, or CUDA's runtime library of version {major}")


def _health(gpus: Sequence[GpuSeen]) -> Iterator[Finding]:
    """Of whole GPUs: instances share it."""
    whole = {gpu.index: gpu for gpu in reversed(gpus)}
    for number, gpu in sorted(whole.items()):
        if gpu.ecc_errors:
            detail = f"{gpu.ecc_errors} errors that ECC could not correct since the driver was loaded"
            fix = f"see `nvidia-smi -i {number} -q -d ECC,ROW_REMAPPER`; as root: nvidia-smi --gpu-reset -i {number}"
            yield Finding("warn", f"GPU {number} ECC", detail, f"{fix}; where they come again, replace the GPU")
        if gpu.ecc is False:
            detail = "off: a flipped bit in its memory goes unnoticed"
            yield Finding("warn", f"GPU {number} ECC", detail, f"as root: nvidia-smi -i {number} -e 1, then reboot")
        if gpu.persistence is False:
            detail = "off: the driver starts the GPU anew for the first request after each pause, which takes seconds"
            fix = f"as root: systemctl enable --now nvidia-persistenced, or nvidia-smi -i {number} -pm 1"
            yield Finding("warn", f"GPU {number} persistence", detail, fix)


def _xid(xid: Xid) -> Finding:
    times = f", {xid.count} times since boot" if xid.count > 1 else ""
    title, text = f"Xid {xid.code}", f": {xid.text}" if xid.text else ""
    meaning = _HARDWARE_XIDS.get(xid.code)
    if meaning is None:
        return Finding("ok", title, f"PCI {xid.pci}{times}, as programs at fault cause them{text}")
    return Finding("warn", title, f"PCI {xid.pci}: {meaning}{times}{text}", _XID_FIX)


def _unread_log(report: GpuReport) -> Iterator[Finding]:
    if report.driver and not report.log_read:
        detail = "this user may not read it: errors of NVIDIA's driver (Xid) are not known"
        yield Finding("ok", "kernel log", detail)
