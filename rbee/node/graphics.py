"""What a node has for Vulkan and ROCm: its render nodes, who may open them, and which drivers are installed.

Rules
- The script (`graphics.sh`, a part of the probe's) only tells. What cannot be read counts as not said.
- A render node is what the kernel's driver of a GPU offers for computing; what turns it into Vulkan is a library of
  the system, which an ICD file names. ROCm has /dev/kfd besides, and libraries of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from rbee.transport.connection import quote

#: PCI vendors whose GPUs compute, as the kernel writes them.
_VENDORS = {"0x1002": "amd", "0x8086": "intel", "0x10de": "nvidia"}
_MAKERS = {"amd": "AMD", "intel": "Intel", "nvidia": "NVIDIA"}
#: How the names of drivers' ICD files begin: Mesa's, AMD's own, NVIDIA's. `lvp` is the processor.
_ICD_VENDORS = {"radeon": "amd", "amd": "amd", "intel": "intel", "nvidia": "nvidia", "nouveau": "nvidia"}

#: yes: the user may read and write it. absent: the kernel has it, and there is no such file, as in a container.
Access = Literal["yes", "no", "absent"]
_MB = 10**6


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU with a render node (renderD128). driver: the kernel's. group: the file's, which may open it.

    Memory in MB (10**6 bytes), 0 where the kernel does not say it. architecture: of AMD's that ROCm knows, gfx1100.
    """

    node: str
    vendor: str
    name: str
    driver: str = ""
    access: Access = "yes"
    group: str = ""
    memory_total_mb: int = 0
    memory_free_mb: int = 0
    architecture: str = ""

    @property
    def path(self) -> str:
        return f"/dev/dri/{self.node}"


@dataclass(frozen=True, slots=True)
class Icd:
    """A driver for Vulkan. vendor: whose GPUs it is for, "" for others. works: False where its library is missing."""

    file: str
    vendor: str
    works: bool = True


@dataclass(frozen=True, slots=True)
class Graphics:
    """kfd: whether the user may open /dev/kfd, with its group. libraries: libvulkan.so.1, libamdhip64.so.6."""

    cards: tuple[Card, ...] = ()
    icds: tuple[Icd, ...] = ()
    kfd: Access = "absent"
    kfd_group: str = ""
    libraries: frozenset[str] = frozenset()

    @property
    def architectures(self) -> frozenset[str]:
        """What ROCm calls the GPUs."""
        return frozenset(card.architecture for card in self.cards if card.architecture)


NONE = Graphics()


def script(root: str = "") -> str:
    """What is appended to the probe's script. root: where /sys and /dev are, for tests."""
    return f"graphics_root={quote(root)}\n{files('rbee.node').joinpath('graphics.sh').read_text(encoding='utf-8')}"


def parse(texts: Callable[[str], Sequence[str]]) -> Graphics:
    """texts: the values that the script said for a key."""
    architectures = dict(filter(None, map(_architecture, texts("kfd_node"))))
    access, _, group = next(iter(texts("kfd")), "absent|").partition("|")
    return Graphics(
        cards=tuple(filter(None, (_card(text, architectures) for text in texts("render")))),
        icds=tuple(filter(None, map(_icd, texts("icd")))),
        kfd=_access(access),
        kfd_group=_word(group),
        libraries=frozenset(name for name in texts("gpu_library") if re.fullmatch(r"lib\w+\.so\.\d+", name, re.ASCII)),
    )


def _card(text: str, architectures: dict[str, str]) -> Card | None:
    """`renderD128|amdgpu|yes|render|0x1002|0x744c|25753026560|28000256|`; None for what does not compute."""
    parts = text.split("|", 8)
    if len(parts) != 9 or not re.fullmatch(r"renderD\d{1,4}", parts[0], re.ASCII) or parts[4] not in _VENDORS:
        return None
    node, driver, access, group, vendor, model, total, used, product = parts
    whole, taken = (int(size) if re.fullmatch(r"\d{1,18}", size, re.ASCII) else 0 for size in (total, used))
    maker = _MAKERS[_VENDORS[vendor]]
    return Card(
        node,
        _VENDORS[vendor],
        product.strip() or f"{maker} GPU {_word(model.removeprefix('0x'))}".rstrip(),
        _word(driver),
        _access(access),
        _word(group),
        whole // _MB,
        max(whole - taken, 0) // _MB,
        architectures.get(node, ""),
    )


def _architecture(text: str) -> tuple[str, str] | None:
    """`128|110001` is renderD128 and gfx1101: major, minor and stepping, the last two digits of which are hex."""
    minor, _, version = text.partition("|")
    if not re.fullmatch(r"\d{1,4}", minor, re.ASCII) or not re.fullmatch(r"\d{5,6}", version, re.ASCII):
        return None
    number = int(version)
    return f"renderD{minor}", f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def _icd(text: str) -> Icd | None:
    file, _, there = text.partition("|")
    if not re.fullmatch(r"[\w.-]{1,100}", file, re.ASCII):
        return None
    vendor = next((vendor for start, vendor in _ICD_VENDORS.items() if file.startswith(start)), "")
    return Icd(file, vendor, there != "no")


def _access(text: str) -> Access:
    return "yes" if text == "yes" else "no" if text == "no" else "absent"


def _word(text: str) -> str:
    """Names of drivers and groups go into commands that people copy."""
    return text if re.fullmatch(r"[\w.@-]{1,64}", text, re.ASCII) else ""
