"""CUDA_VISIBLE_DEVICES and its kin, as their owners document them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.system.gpu import Gpu
from rbee_remote.system.gpu_visible import environment, granted_by_pbs, named, visible

ZERO = Gpu(0, "zero", 1000, 900, uuid="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
ONE = Gpu(1, "one", 1000, 900, uuid="GPU-8932aaaa-d72c-4106-c12f-20bd9faed9f7")
TWO = Gpu(2, "two", 1000, 900, uuid="GPU-00000002-d72c-4106-c12f-20bd9faed9f8")
MIG = Gpu(
    3, "mig", 500, 400, uuid="MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", instance=0, parent="GPU-33333333", part="2/0"
)
MIG2 = Gpu(3, "mig", 500, 400, uuid="MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb", instance=1, parent="GPU-33333333")
ALL = (ZERO, ONE, TWO, MIG, MIG2)
AMD0 = Gpu(0, "amd zero", 1000, 900, vendor="amd", uuid="GPU-f3a1c0de00000000")
AMD1 = Gpu(1, "amd one", 1000, 900, vendor="amd", uuid="GPU-f3a1c0de00000001")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("0", (ZERO,)),
        ("2,0", (TWO, ZERO)),
        (" 2 , 0 ", (TWO, ZERO)),
        ("0,2,-1,1", (ZERO, TWO)),  # the example of the CUDA programming guide
        ("-1", ()),
        ("7", ()),
        ("0,7,1", (ZERO,)),
        ("NoDevFiles", ()),  # Slurm's, for a job without GPUs
        ("0,0", ()),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", (ZERO,)),
        ("gpu-8932F", (ZERO,)),
        ("GPU-8932", ()),  # two begin so
        ("GPU-8932f,GPU-0", (ZERO, TWO)),
        ("GPU-ffff,GPU-0", ()),
        ("MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb", (MIG2,)),
        ("MIG-c6d4", (MIG,)),
        ("GPU-33333333", (MIG,)),
        ("MIG-GPU-33333333/2/0", (MIG,)),
        ("MIG-GPU-33333333/2/1", ()),
        ("3", (MIG,)),
        ("99999999999999999999", ()),
    ],
)
def test_cuda_visible_devices(text: str, expected: tuple[Gpu, ...]) -> None:
    assert visible(ALL, {"CUDA_VISIBLE_DEVICES": text}).gpus == expected


@pytest.mark.parametrize(
    ("env", "expected", "limits"),
    [
        ({}, (ZERO, ONE, TWO), ""),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, (ZERO, ONE, TWO), ""),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, (ZERO, ONE, TWO), ""),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, (), "NVIDIA_VISIBLE_DEVICES=void"),
        ({"NVIDIA_VISIBLE_DEVICES": ONE.uuid}, (ONE,), f"NVIDIA_VISIBLE_DEVICES={ONE.uuid}"),
        ({"NVIDIA_VISIBLE_DEVICES": "1"}, (ONE,), "NVIDIA_VISIBLE_DEVICES=1"),
        ({"NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices"}, (ZERO, ONE, TWO), ""),
        ({"NVIDIA_VISIBLE_DEVICES": "nvidia.com/gpu=0"}, (ZERO, ONE, TWO), ""),
        # The container sees as many as it was given: they were counted anew, and the host's numbers mean nothing.
        ({"NVIDIA_VISIBLE_DEVICES": "3,5,7"}, (ZERO, ONE, TWO), "NVIDIA_VISIBLE_DEVICES=3,5,7"),
        ({"SLURM_JOB_GPUS": "0,2", "SLURM_JOB_ID": "7"}, (ZERO, TWO), "SLURM_JOB_GPUS=0,2 (Slurm job 7)"),
        ({"SLURM_JOB_GPUS": "1-2"}, (ONE, TWO), "SLURM_JOB_GPUS=1-2"),
        ({"SLURM_JOB_GPUS": "5-7"}, (ZERO, ONE, TWO), "SLURM_JOB_GPUS=5-7"),
        ({"SLURM_JOB_GPUS": "0,2", "SLURM_STEP_GPUS": "2"}, (TWO,), "SLURM_STEP_GPUS=2"),
        (
            {"SLURM_JOB_GPUS": "0,2", "CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_ID": "7"},
            (ONE,),
            "CUDA_VISIBLE_DEVICES=1 (Slurm job 7)",
        ),
        (
            {"PBS_JOBID": "12", "CUDA_VISIBLE_DEVICES": "GPU-0"},
            (TWO,),
            "CUDA_VISIBLE_DEVICES=GPU-0 (PBS job 12)",
        ),
        ({"SLURM_JOB_ID": "7"}, (ZERO, ONE, TWO), ""),
    ],
)
def test_batch_systems_and_containers(env: dict[str, str], expected: tuple[Gpu, ...], limits: str) -> None:
    seen = visible((ZERO, ONE, TWO), env)
    assert (seen.gpus, seen.limits) == (expected, limits)


def test_torque_names_gpus_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "gpus"
    file.write_text("node7-gpu2\nnode7-gpu0\nnonsense\n")
    env = {"PBS_GPUFILE": str(file)}
    assert granted_by_pbs(env) == (2, 0)
    assert visible((ZERO, ONE, TWO), env, granted_by_pbs(env)).gpus == (ZERO, TWO)
    assert granted_by_pbs({"PBS_GPUFILE": str(tmp_path / "none")}) == granted_by_pbs({}) == ()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (AMD0, AMD1)),
        ({"ROCR_VISIBLE_DEVICES": "1"}, (AMD1,)),
        ({"ROCR_VISIBLE_DEVICES": ""}, ()),
        ({"ROCR_VISIBLE_DEVICES": AMD1.uuid}, (AMD1,)),
        ({"HIP_VISIBLE_DEVICES": "1"}, (AMD1,)),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, (AMD1,)),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (AMD1,)),  # HIP takes it where it has none of its own
        ({"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "0"}, (AMD0,)),
    ],
)
def test_amd(env: dict[str, str], expected: tuple[Gpu, ...]) -> None:
    assert visible((AMD0, AMD1), env).gpus == expected


@given(st.text(alphabet="0123456789,-GPUMIgpu abcdef", max_size=40))
def test_a_list_names_none_twice_and_none_that_is_not_there(text: str) -> None:
    found = named(ALL, text)
    assert len(found) == len(set(found))
    assert set(found) <= set(ALL)


@given(st.permutations(ALL).flatmap(lambda gpus: st.integers(0, len(ALL)).map(lambda count: tuple(gpus[:count]))))
def test_what_a_worker_is_given_is_what_cuda_will_see(gpus: tuple[Gpu, ...]) -> None:
    before = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "PATH": "/bin"}
    env = environment(gpus, before)
    assert env["PATH"] == "/bin"
    assert visible(ALL, env).gpus == (gpus or visible(ALL, before).gpus)


def test_hip_does_not_count_again_what_rocr_has_chosen() -> None:
    env = environment((AMD1,), {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"})
    assert env == {"ROCR_VISIBLE_DEVICES": AMD1.uuid}
    assert visible((AMD0, AMD1), env).gpus == (AMD1,)


@pytest.mark.parametrize(
    ("text", "there", "expected"),
    [
        ("3:1", ALL, (MIG2,)),
        ("0:4,0:5", (MIG, MIG2), (MIG, MIG2)),  # counted anew in the container
        ("GPU-33333333", ALL, (MIG, MIG2)),
        (MIG2.uuid, ALL, (MIG2,)),
    ],
)
def test_instances_in_containers(text: str, there: tuple[Gpu, ...], expected: tuple[Gpu, ...]) -> None:
    assert visible(there, {"NVIDIA_VISIBLE_DEVICES": text}).gpus == expected


@pytest.mark.parametrize(
    ("text", "order", "names", "told"),
    [
        ("0", "", ("RTX 4090", "GT 1030"), True),
        ("0,1", "FASTEST_FIRST", ("RTX 4090", "GT 1030"), True),
        ("0", "PCI_BUS_ID", ("RTX 4090", "GT 1030"), False),
        ("0", "", ("RTX 4090", "RTX 4090"), False),
        ("GPU-0", "", ("RTX 4090", "GT 1030"), False),
        ("", "", ("RTX 4090", "GT 1030"), False),
    ],
)
def test_an_index_that_cuda_could_count_otherwise_is_told(
    text: str, order: str, names: tuple[str, ...], told: bool
) -> None:
    gpus = [Gpu(number, name, 8000, 8000, uuid=f"GPU-{number}") for number, name in enumerate(names)]
    env = {"CUDA_VISIBLE_DEVICES": text} | ({"CUDA_DEVICE_ORDER": order} if order else {})
    seen = visible(gpus, env)
    assert seen.limits == f"CUDA_VISIBLE_DEVICES={text}" + " (counted as nvidia-smi does)" * told
    assert seen.gpus == (tuple(gpus[:1]) if text in ("0", "GPU-0") else tuple(gpus[: 2 * bool(text)]))
