"""By which of llama.cpp's backends a node's GPUs can be used, and what keeps one idle, with the command that mends it.

Pure: from the probe alone. That llama.cpp is there for a backend is another question (`setup.runtime`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rbee.node.graphics import Card, Graphics

if TYPE_CHECKING:
    from rbee.node.probe import Probe

#: The better one first: each maker's own, then the one for all.
ORDER = ("cuda", "rocm", "vulkan")

#: Kernel modules, by vendor.
_MODULES = {"amd": "amdgpu", "intel": "i915 (or xe)", "nvidia": "nvidia"}
_APT, _DNF = "apt install mesa-vulkan-drivers", "dnf install mesa-vulkan-drivers"
#: How systems install Vulkan's drivers, by words of their names; for AMD's and Intel's GPUs, where that differs.
_INSTALL = (
    (("debian", "ubuntu", "mint", "pop!_os"), _APT, _APT),
    (("fedora", "red hat", "rocky", "alma", "centos", "oracle"), _DNF, _DNF),
    (("arch", "manjaro", "endeavour"), "pacman -S vulkan-radeon", "pacman -S vulkan-intel"),
    (("alpine",), "apk add mesa-vulkan-ati", "apk add mesa-vulkan-intel"),
    (("suse",), "zypper install libvulkan_radeon", "zypper install libvulkan_intel"),
)
#: Groups that one does not join: root's own, and what a container does not know.
_NO_GROUPS = frozenset({"", "root", "wheel", "nobody", "nogroup", "UNKNOWN"})


@dataclass(frozen=True, slots=True)
class Idle:
    """A GPU that no backend can use. fix: what to do on the node. closed: the files that the user may not open."""

    gpu: str
    why: str
    fix: str
    closed: tuple[str, ...] = ()


#: What is there shows when the driver answers again.
HANGING = Idle("NVIDIA's GPU", "its driver does not answer in time", "see `sudo dmesg | grep NVRM`; reboot the node")


def usable(probe: Probe) -> tuple[str, ...]:
    """The backends by which at least one GPU of the node can be used, in ORDER."""
    graphics = probe.graphics
    nvidia = any(gpu.vendor == "nvidia" for gpu in probe.gpus)
    found = set()
    if nvidia:
        found.add("cuda")
    if any(_by_rocm(graphics, card) for card in graphics.cards):
        found.add("rocm")
    if any(_by_vulkan(graphics, card) for card in graphics.cards) or (nvidia and _has_icd(graphics, "nvidia")):
        found.add("vulkan")
    return tuple(backend for backend in ORDER if backend in found)


def idle(probe: Probe) -> list[Idle]:
    """AMD's and Intel's that nothing can use. NVIDIA's are what its own driver says of them, where that answers."""
    graphics = probe.graphics
    cards = [card for card in graphics.cards if card.vendor in {"amd", "intel"}]
    unused = [card for card in cards if not (_by_rocm(graphics, card) or _by_vulkan(graphics, card))]
    hanging = [HANGING] * (probe.nvidia_hangs and not any(gpu.vendor == "nvidia" for gpu in probe.gpus))
    return [*hanging, *(Idle(card.name, *_obstacle(probe, card), _closed(graphics, card)) for card in unused)]


def _closed(graphics: Graphics, card: Card) -> tuple[str, ...]:
    """The files that a user would have to be let open, by whom nothing else keeps from the GPU."""
    if not card.driver or card.access != "no":
        return ()
    kfd = card.vendor == "amd" and graphics.kfd == "no"
    return ("/dev/kfd", card.path) if kfd else (card.path,)


def _by_rocm(graphics: Graphics, card: Card) -> bool:
    has_library = any(name.startswith("libamdhip64.") for name in graphics.libraries)
    return bool(card.architecture) and card.access == "yes" and graphics.kfd == "yes" and has_library


def _by_vulkan(graphics: Graphics, card: Card) -> bool:
    """NVIDIA's own driver does not need the render node, and says by its own tool what it has."""
    return card.vendor != "nvidia" and card.access == "yes" and _has_icd(graphics, card.vendor)


def _has_icd(graphics: Graphics, vendor: str) -> bool:
    return any(icd.vendor == vendor and icd.works for icd in graphics.icds)


def _obstacle(probe: Probe, card: Card) -> tuple[str, str]:
    """(why, fix), the first one that stands in the way."""
    if not card.driver:
        return "the kernel has no driver for it", f"load it as root: modprobe {_MODULES[card.vendor]}"
    if card.access == "absent":
        kfd = " --device /dev/kfd" * (card.vendor == "amd")
        return (
            f"the kernel has it, but there is no {card.path} here",
            f"if the node is a container, start it with --device /dev/dri{kfd}",
        )
    if card.access == "no":
        closed = _closed(probe.graphics, card)
        return f"{probe.user or 'the user'} may not open {' and '.join(closed)}", _how_to_open(probe, card, closed)
    broken = next((icd for icd in probe.graphics.icds if icd.vendor == card.vendor and not icd.works), None)
    why = f"the library of {broken.file} is missing" if broken else "no driver for Vulkan is installed"
    return why, f"as root: {how_to_install_driver(probe.os_release, card.vendor)}"


def _how_to_open(probe: Probe, card: Card, closed: Sequence[str]) -> str:
    user = probe.user or "USER"
    groups = {card.group, probe.graphics.kfd_group} if "/dev/kfd" in closed else {card.group}
    if groups & _NO_GROUPS:
        return f'as root: setfacl -m u:{user}:rw {" ".join(closed)} (a udev rule with GROUP="render" makes it last)'
    # A hive keeps the groups of the session that started it.
    names = ",".join(sorted(groups))
    return f"as root: usermod -aG {names} {user}; then `rbee hive stop` for the node, which starts it with the group"


def how_to_install_driver(os_release: str, vendor: str) -> str:
    """The command that installs Mesa's drivers for Vulkan. os_release: PRETTY_NAME of the system."""
    name = os_release.lower()
    for words, for_amd, for_intel in _INSTALL:
        if any(word in name for word in words):
            return for_amd if vendor == "amd" else for_intel
    return "install Mesa's drivers for Vulkan (Debian: mesa-vulkan-drivers)"


def summary(probe: Probe) -> Iterator[str]:
    """One line for each backend by which a GPU can be used: `vulkan (this system's loader)`."""
    for backend in usable(probe):
        if backend == "vulkan":
            own = "libvulkan.so.1" in probe.graphics.libraries
            yield f"vulkan ({'the system' if own else 'rbee'} has the loader)"
        elif backend == "rocm" and (known := probe.graphics.architectures):
            yield f"rocm ({', '.join(sorted(known))})"
        else:
            yield backend
