"""What a wheel has to fit: operating system, processor, C library and Python. Pure, except for `Target.here`."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.node.probe import Probe

Version = tuple[int, ...]

#: The oldest glibc that a wheel tag can name, for each processor (PEP 600).
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
_LEGACY_GLIBC = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
_LIBCS = frozenset({"glibc", "musl", "macos"})
#: What a macOS that does not say its version is taken for: the first one on Apple's own processors.
_OLDEST_MACOS = (11, 0)


@dataclass(frozen=True, slots=True)
class Target:
    """A platform and its Python. machine: x86_64 or aarch64, whatever the system calls it.

    libc: glibc or musl (Linux), macos, or empty when unknown. libc_version: of that. python: (3, 11).
    cpu: what the processor can, in the kernel's words; empty when unknown. cudart: major versions of CUDA's runtime
    library that are there. cuda: the newest CUDA that NVIDIA's driver there knows, (12, 4); gpus: the compute
    capabilities of NVIDIA's GPUs; amdgpu: what ROCm calls AMD's (gfx1100). All of these are of one machine, not of its
    kind: they do not tell targets apart.
    """

    system: str
    machine: str
    libc: str
    libc_version: Version
    python: Version
    cpu: frozenset[str] = field(default=frozenset(), compare=False)
    cudart: frozenset[int] = field(default=frozenset(), compare=False)
    cuda: Version = field(default=(), compare=False)
    gpus: frozenset[Version] = field(default=frozenset(), compare=False)
    amdgpu: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, probe: Probe, python: Version) -> Target:
        """The platform that a probe found. python: the version the runtime will have."""
        name, _, version = probe.libc.partition(" ")
        known = name if name in _LIBCS else ""
        machine = _machine(probe.machine)
        gpus = frozenset(gpu.compute for gpu in probe.gpus if gpu.vendor == "nvidia" and gpu.compute)
        kind = cls(
            probe.system, machine, known, _version(version), python[:2], probe.cpu, probe.cudart, probe.cuda, gpus
        )
        return replace(kind, amdgpu=probe.graphics.architectures)

    @classmethod
    def here(cls) -> Target:
        """The keeper's own platform and Python."""
        system = platform.system()
        if system == "Darwin":
            libc, version = "macos", platform.mac_ver()[0]
        else:
            libc, version = platform.libc_ver()
            libc = libc or ("musl" if system == "Linux" else "")
        return cls(system, _machine(platform.machine()), libc, _version(version), sys.version_info[:2], _own_cpu())

    @property
    def name(self) -> str:
        """Short, for file names and messages: `linux-x86_64-glibc2.36`."""
        return f"{self.system.lower()}-{self.machine}-{self.libc}{_dotted(self.libc_version)}"

    @property
    def text(self) -> str:
        """All of it, for `read`: `Linux x86_64 glibc 2.36 3.11`, with a dash for what is not known."""
        parts = (self.system, self.machine, self.libc, _dotted(self.libc_version), _dotted(self.python))
        return " ".join(part or "-" for part in parts)

    @classmethod
    def read(cls, text: str) -> Target | None:
        """From `text`; None for what is none."""
        parts = ["" if part == "-" else part for part in text.split(" ")]
        if len(parts) != 5 or not all(parts[:2]):
            return None
        system, machine, libc, version, python = parts
        return cls(system, machine, libc, _version(version), _version(python))

    def runs_what_is_built_on(self, builder: Target) -> bool:
        """Whether a binary linked on `builder` runs here: the C library may be newer here, never older."""
        same = (self.system, self.machine, self.libc) == (builder.system, builder.machine, builder.libc)
        return same and builder.libc_version <= self.libc_version

    def wheel_platforms(self) -> list[str]:
        """The platform tags whose wheels run here, the best first."""
        if self.system == "Darwin":
            from packaging.tags import mac_platforms

            version = (self.libc_version or _OLDEST_MACOS)[:2]
            return list(mac_platforms((version[0], version[-1]), self._mac_machine()))
        if self.libc == "musl":
            major, minor = _major_minor(self.libc_version, default=(1, 2))
            return [f"musllinux_{major}_{n}_{self.machine}" for n in range(minor, -1, -1)]
        return self._manylinux()

    def _mac_machine(self) -> str:
        return "arm64" if self.machine == "aarch64" else self.machine

    def _manylinux(self) -> list[str]:
        major, minor = _major_minor(self.libc_version, default=(2, 17))
        tags = []
        for n in range(minor, _OLDEST_GLIBC.get(self.machine, 17) - 1, -1):
            tags.append(f"manylinux_{major}_{n}_{self.machine}")
            if n in _LEGACY_GLIBC:
                tags.append(f"{_LEGACY_GLIBC[n]}_{self.machine}")
        return tags

    def markers(self) -> dict[str, str]:
        """The environment in which a requirement's marker is evaluated for this platform (PEP 508)."""
        python = _dotted(self.python)
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{python}.0",
            "os_name": "posix",
            "platform_machine": self._mac_machine() if self.system == "Darwin" else self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": self.system,
            "platform_version": "",
            "python_full_version": f"{python}.0",
            "python_version": python,
            "sys_platform": self.system.lower(),
            "extra": "",
        }


def _own_cpu() -> frozenset[str]:
    """What this machine's processor can, as the probe asks a node for it."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)", said, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _machine(name: str) -> str:
    return _MACHINES.get(name.lower(), name)


def _version(text: str) -> Version:
    """Two numbers; () for what is no version of a C library or a macOS, whose numbers have three digits at most."""
    numbers = re.findall(r"[0-9]+", text)[:2]
    return tuple(map(int, numbers)) if all(len(number) <= 3 for number in numbers) else ()


def _major_minor(version: Version, *, default: tuple[int, int]) -> tuple[int, int]:
    """default: the oldest C library that is still met, for a node that does not say its version."""
    return (version[0], version[1]) if len(version) > 1 else default


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
