"""Which GPUs the environment leaves to a process: what CUDA, ROCm, containers and batch systems call visible. Pure, but
for `granted_by_pbs`.

Rules
- CUDA_VISIBLE_DEVICES is read as CUDA does: indices, or UUIDs and unique beginnings of them; empty means none; what is
  invalid ends the list; one named twice makes it none (CUDA C++ Programming Guide, "CUDA Environment Variables").
  But an index always counts in the order of the PCI bus, as nvidia-smi does: which GPU is fastest CUDA alone knows.
- ROCR_VISIBLE_DEVICES comes first, and HIP_VISIBLE_DEVICES counts among what it leaves.
- A batch system says what a job was granted in CUDA_VISIBLE_DEVICES; its own variables count only without that one.
- A limit never adds a GPU: one that the driver hides already, as by a control group, is not looked for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee_remote.system.gpu import Gpu

#: What a batch system calls the job, and a name for it.
_JOBS = {"SLURM_JOB_ID": "Slurm", "PBS_JOBID": "PBS", "LSB_JOBID": "LSF"}

_UUIDS = ("GPU-", "MIG-")

#: That say for a process which devices it sees; the worker's are written anew.
CUDA, ROCR, HIP = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Visible:
    """gpus: in the order in which they were named. limits: which settings were followed, "" for none."""

    gpus: tuple[Gpu, ...]
    limits: str = ""


def visible(gpus: Sequence[Gpu], env: Mapping[str, str], pbs: Sequence[int] = ()) -> Visible:
    """gpus: those that answer, of all makers. pbs: as `granted_by_pbs` tells."""
    nvidia, followed = _nvidia([gpu for gpu in gpus if gpu.vendor == "nvidia"], env, pbs)
    amd, rocm = _amd([gpu for gpu in gpus if gpu.vendor == "amd"], env)
    others = [gpu for gpu in gpus if gpu.vendor not in ("nvidia", "amd")]
    limits = ", ".join(followed + rocm)
    job = next((f"{name} job {env[variable]}" for variable, name in _JOBS.items() if env.get(variable)), "")
    return Visible((*nvidia, *amd, *others), f"{limits} ({job})" if limits and job else limits)


def environment(gpus: Sequence[Gpu], env: Mapping[str, str]) -> dict[str, str]:
    """`env` for a process that is to see these GPUs alone, in this order; all of one maker. What cannot be shown alone
    is chosen by its name."""
    if not gpus or not gpus[0].counted_anew:
        return dict(env)
    names = ",".join(gpu.visible_as for gpu in gpus)
    if gpus[0].vendor == "amd":
        # HIP would count among those that ROCr leaves, and takes CUDA's variable where it has none of its own.
        return {name: value for name, value in env.items() if name not in (HIP, CUDA)} | {ROCR: names}
    return dict(env) | {CUDA: names}


def vulkan_settings(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What of `env` ggml and Vulkan's loader go by: which drivers and devices there are, and in which order."""
    return tuple(sorted((name, value) for name, value in env.items() if name.startswith(("GGML_VK_", "VK_"))))


def granted_by_pbs(env: Mapping[str, str]) -> tuple[int, ...]:
    """The indices in the file that TORQUE names in PBS_GPUFILE, a line such as `node7-gpu1` for each GPU."""
    with contextlib.suppress(OSError, UnicodeDecodeError, KeyError):
        lines = Path(env["PBS_GPUFILE"]).read_text().split()
        return tuple(int(found[1]) for line in lines if (found := re.search(r"-gpu(\d{1,4})$", line)))
    return ()


def _nvidia(gpus: list[Gpu], env: Mapping[str, str], pbs: Sequence[int]) -> tuple[list[Gpu], list[str]]:
    followed = []
    container = env.get("NVIDIA_VISIBLE_DEVICES", "")
    given = _in_container(gpus, container)
    if given is not None:
        gpus = given
        followed.append(f"NVIDIA_VISIBLE_DEVICES={container}")
    if CUDA in env:
        order = " (counted as nvidia-smi does)" if _counts_may_differ(gpus, env) else ""
        return named(gpus, env[CUDA]), [*followed, f"{CUDA}={env[CUDA]}{order}"]
    for variable in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if env.get(variable):
            return _granted(gpus, _indices(env[variable])), [*followed, f"{variable}={env[variable]}"]
    if pbs:
        return _granted(gpus, pbs), [*followed, f"PBS_GPUFILE={env['PBS_GPUFILE']}"]
    return gpus, followed


def _counts_may_differ(gpus: list[Gpu], env: Mapping[str, str]) -> bool:
    """Whether an index could mean another GPU to a program that leaves CUDA its own order, the fastest first; batch
    systems count as the driver does."""
    if any(env.get(job) for job in _JOBS) or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return False
    models = {gpu.name for gpu in gpus if gpu.instance is None}
    return len(models) > 1 and any(word.strip().isdigit() for word in env[CUDA].split(","))


def _in_container(gpus: list[Gpu], wanted: str) -> list[Gpu] | None:
    """What the container runtime was asked for, which a privileged container sees more than. Indices are the host's,
    `0:1` an instance. None for no limit: all, nothing, and words that name no GPU, such as the folder of volume mounts.
    """
    if wanted in ("void", "none"):
        return []
    words = [word.strip() for word in wanted.split(",")]
    if all(re.fullmatch(r"\d{1,4}", word) for word in words):
        return _granted(gpus, [int(word) for word in words])
    if all(re.fullmatch(r"\d{1,4}:\d{1,4}", word) for word in words):
        shown = [gpu for gpu in gpus if f"{gpu.index}:{gpu.instance}" in words]
        return gpus if len(gpus) <= len(words) else shown
    if all(word.startswith(_UUIDS) for word in words):
        return [gpu for gpu in gpus if gpu.uuid in words or gpu.parent in words]
    return None


def _granted(gpus: list[Gpu], indices: Sequence[int]) -> list[Gpu]:
    """Indices count all of the machine. Where no more is to be seen than was granted, the rest is hidden already, and
    the driver has counted anew."""
    if len({gpu.index for gpu in gpus}) <= len(set(indices)):
        return gpus
    return [gpu for gpu in gpus if gpu.index in indices]


def _indices(text: str) -> list[int]:
    """Of a list such as `0,2-3`, as Slurm writes it."""
    found: list[int] = []
    for first, last in re.findall(r"(\d{1,4})(?:-(\d{1,4}))?", text):
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _amd(gpus: list[Gpu], env: Mapping[str, str]) -> tuple[list[Gpu], list[str]]:
    followed = []
    if ROCR in env:
        gpus = named(gpus, env[ROCR])
        followed.append(f"{ROCR}={env[ROCR]}")
    variable = HIP if HIP in env else CUDA
    if gpus and variable in env:
        gpus = named(gpus, env[variable], gpus.index)
        followed.append(f"{variable}={env[variable]}")
    return gpus, followed


def named(gpus: Sequence[Gpu], text: str, number: Callable[[Gpu], int] = lambda gpu: gpu.index) -> list[Gpu]:
    """Those that a list names, in its order. number: what an index is compared with."""
    found: list[Gpu] = []
    for word in text.split(","):
        gpu = _find(gpus, word.strip(), number)
        if gpu is None:
            break
        if gpu in found:
            return []
        found.append(gpu)
    return found


def _find(gpus: Sequence[Gpu], word: str, number: Callable[[Gpu], int]) -> Gpu | None:
    if word.upper().startswith(_UUIDS):
        return find_uuid(gpus, word)
    digits = re.match(r"\d{1,4}(?!\d)", word)
    # Of a GPU in MIG mode CUDA takes the first instance.
    return next((gpu for gpu in gpus if digits and number(gpu) == int(digits[0])), None)


def find_uuid(gpus: Sequence[Gpu], beginning: str) -> Gpu | None:
    """The one whose UUID begins so, or the first instance of a GPU whose does; None for none, and for several.

    `MIG-GPU-UUID/1/0` names an instance by GPU instance and compute instance, as drivers before 470 did.
    """
    low = beginning.lower()
    if low.startswith("mig-gpu-") and not any(gpu.uuid.lower().startswith(low) for gpu in gpus):
        return next((gpu for gpu in gpus if low == f"mig-{gpu.parent}/{gpu.part}".lower()), None)
    matches = [gpu for gpu in gpus if gpu.uuid.lower().startswith(low)]
    if not matches:
        matches = [gpu for gpu in gpus if gpu.parent.lower().startswith(low)][:1]
    return matches[0] if len(matches) == 1 else None
