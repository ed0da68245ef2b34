"""What NVIDIA's driver on a node says of its GPUs and of CUDA.

Rules
- The script (`nvidia.sh`, a part of the probe's) only tells: nvidia-smi's lines, or where there is none the same from
  libcuda by ctypes, which needs no tool. What cannot be read counts as not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Card:
    """Memory in MB (10**6 bytes), 0 where it is not known. compute: its capability, (8, 9); () when unknown."""

    name: str
    memory_total_mb: int
    memory_free_mb: int
    driver: str
    compute: tuple[int, ...] = ()


#: Seconds for all that the driver is asked; two questions that `timeout` can end, and what is between them.
LIMIT_S = 14.0


def script(limit_s: float = LIMIT_S) -> str:
    """What is appended to the probe's script."""
    return f"nvidia_limit_s={limit_s:g}\n{files('rbee.node').joinpath('nvidia.sh').read_text(encoding='utf-8')}"


def cards(lines: Sequence[str]) -> Iterator[Card]:
    """`NVIDIA A100, 81920, 80000, 550.54.15, 8.0` for each: name, memory and free memory in MiB, driver, capability,
    which drivers before 510 do not say."""
    for line in lines:
        rest, _, last = line.rpartition(",")
        compute = version(last.strip())
        parts = [part.strip() for part in (rest if compute else line).rsplit(",", 3)]
        if len(parts) == 4:
            name, total, free, driver = parts
            yield Card(name, _mb(total), _mb(free), driver, compute)


def version(text: str) -> tuple[int, ...]:
    """`8.9`, `12.4`; () for what is neither a capability nor a version of CUDA, as a driver's `550.54.15`."""
    found = re.fullmatch(r"([0-9]{1,2})\.([0-9]{1,2})", text)
    return (int(found[1]), int(found[2])) if found else ()


def _mb(mib: str) -> int:
    """Eighteen digits hold any size; more is nonsense, as is "[N/A]"."""
    return int(mib) * 2**20 // 10**6 if re.fullmatch(r"[0-9]{1,18}", mib) else 0
