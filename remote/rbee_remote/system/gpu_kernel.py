"""What the kernel knows of GPUs beside their drivers' libraries: its log, the loaded module, the PCI bus. Linux."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from rbee_remote.protocol.gpus import PciGpu, Xid

_TIMEOUT_S = 5.0
#: Longest text of a line that is told.
_MOST_TEXT = 200

#: Who may read the kernel's log differs (kernel.dmesg_restrict, the group adm): the first that says something counts.
_LOGS = (("dmesg",), ("journalctl", "--dmesg", "--boot", "--no-pager", "--output=cat", "--grep=Xid"))

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+),?\s*(.*)")
_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")

_VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_DISPLAY = "0x03"  # PCI base class 3; datacentre GPUs are 3D controllers, 0x0302


def log_lines() -> list[str] | None:
    """Of the kernel's log since boot, None where this user may not read it."""
    for command in _LOGS:
        tool = shutil.which(command[0])
        if tool is None:
            continue
        try:
            done = subprocess.run([tool, *command[1:]], capture_output=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.decode(errors="replace").splitlines()
    return None


def xids(lines: Iterable[str]) -> tuple[Xid, ...]:
    """Each code of each GPU once, the last text with it; in the order of their last appearance."""
    found: dict[tuple[str, int], Xid] = {}
    for line in lines:
        if match := _XID.search(line):
            pci, code = match[1].lower(), int(match[2])
            before = found.pop((pci, code), None)
            count = before.count + 1 if before else 1
            found[pci, code] = Xid(code, pci, count, match[3][:_MOST_TEXT].strip())
    return tuple(found.values())


def loaded_module(proc: Path = Path("/proc")) -> str:
    """The version of NVIDIA's kernel module that is loaded, "" for none."""
    match = _MODULE.search(_read(proc / "driver/nvidia/version"))
    return match[1] if match else ""


def on_bus(sys: Path = Path("/sys")) -> tuple[PciGpu, ...]:
    """In the order of their addresses."""
    found = []
    folder = sys / "bus/pci/devices"
    for device in sorted(folder.iterdir()) if folder.is_dir() else ():
        vendor = _VENDORS.get(_read(device / "vendor"))
        if vendor and _read(device / "class").startswith(_DISPLAY):
            driver = device / "driver"
            found.append(PciGpu(vendor, device.name, driver.resolve().name if driver.exists() else ""))
    return tuple(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
