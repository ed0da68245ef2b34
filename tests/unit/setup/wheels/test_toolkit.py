"""A CUDA toolkit out of wheels: for whom it is, what of the locks it is, and that CMake finds all of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rbee.base.files import LocalFile
from rbee.setup.base import cuda, make_toolkit, node_scripts
from rbee.setup.base.platforms import Target, Version
from rbee.setup.wheels import toolkit
from tests.unit.setup.tiny_packages import write_wheel

CC = shutil.which("cc")


def machine(driver: Version, *gpus: Version, libc: str = "glibc", version: Version = (2, 36)) -> Target:
    return Target("Linux", "x86_64", libc, version, (3, 11), cuda=driver, gpus=frozenset(gpus))


@pytest.mark.parametrize(
    ("target", "has"),
    [
        (machine((13, 0), (8, 9)), True),
        (machine((12, 9), (8, 9)), False),
        (machine((13, 0), (7, 0)), False),
        (machine((13, 0), (8, 9), version=(2, 17)), False),
        (machine((13, 0), (8, 9), libc="musl", version=(1, 2)), False),
        (machine(()), False),
    ],
)
def test_the_fetched_toolkit_is_for_line_13_on_a_linux_that_its_packages_are_for(target: Target, has: bool) -> None:
    assert toolkit.has_wheels(target) is has


def test_the_locks_have_a_compiler_for_line_13_and_libraries_for_both() -> None:
    assert {line.name for line in toolkit.compiler()} == {
        "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl",
    }  # fmt: skip
    for line in cuda.LINES:
        names = {locked.name.removesuffix(f"-cu{line.major}") for locked in toolkit.libraries(line.major)}
        assert names == {"nvidia-cublas", "nvidia-cuda-runtime"}
        assert all(locked.hashes for locked in toolkit.libraries(line.major))
    assert toolkit.compiler(12) == []


@pytest.mark.skipif(CC is None or sys.platform != "linux", reason="needs cc, and ELF")
def test_it_is_put_together_as_cmake_looks_for_it(tmp_path: Path) -> None:
    wheel = LocalFile.of(
        write_wheel(
            tmp_path,
            "nvidia_all",
            {
                "nvidia/cu13/bin/nvcc": b"#!/bin/sh\necho compiled\n",
                "nvidia/cu13/nvvm/bin/cicc": b"#!/bin/sh\n",
                "nvidia/cu13/lib/libcudart.so.13": b"cudart",
                "nvidia/cu13/lib/libcublasLt.so.13": b"large, and nothing links to it",
                "other/x.py": b"",
                "nvidia/cu13/include/cuda.h": b"",
            },
        )
    )
    folder = tmp_path / "a folder"
    make_toolkit.main(folder, wheel.sha256, str(wheel.path))
    assert subprocess.run([folder / "bin/nvcc"], capture_output=True, check=True, timeout=60).stdout == b"compiled\n"
    assert os.access(folder / "nvvm/bin/cicc", os.X_OK)
    assert (folder / "lib64/libcudart.so").read_bytes() == b"cudart"
    libraries = {path.name for path in (folder / "lib").iterdir()}
    assert libraries == {"libcudart.so", "libcudart.so.13", "stubs"}
    assert not (folder / "x.py").exists()
    user = b"int cuMemMap(void); int f(void) { return cuMemMap(); }"
    link = ["cc", "-shared", "-fPIC", "-xc", "-", "-o", str(tmp_path / "user.so"), f"-L{folder}/lib/stubs", "-lcuda"]
    subprocess.run([*link, "-Wl,-z,defs"], input=user, check=True, timeout=60)
    assert b"libcuda.so.1\0" in (tmp_path / "user.so").read_bytes()
    driver = ctypes.CDLL(str(folder / "lib64/stubs/libcuda.so"))
    assert driver.cuMemCreate() == 100  # CUDA_ERROR_NO_DEVICE


@pytest.mark.skipif(CC is None, reason="needs cc")
def test_a_part_with_another_hash_is_not_used_and_a_toolkit_has_a_compiler(tmp_path: Path) -> None:
    wheel = LocalFile.of(write_wheel(tmp_path, "nvidia_all", {"nvidia/cu13/lib/libcudart.so.13": b""}))
    with pytest.raises(SystemExit, match="another SHA-256"):
        make_toolkit.main(tmp_path / "cuda", "0" * 64, str(wheel.path))
    with pytest.raises(SystemExit, match="no nvcc"):
        make_toolkit.main(tmp_path / "other", wheel.sha256, str(wheel.path))


@pytest.mark.skipif(CC is None, reason="needs cc")
def test_a_build_has_one_toolkit_however_often_it_goes_on(tmp_path: Path) -> None:
    """uv stands for the build: it calls the compiler that CMake would take."""
    uv, staging = tmp_path / "uv", tmp_path / "a staging"
    uv.write_text('#!/bin/sh\n[ "$1" != build ] || { "$CUDACXX"; echo "$CUDAToolkit_ROOT"; exit 3; }\n')
    uv.chmod(0o755)
    place = node_scripts.Place(str(tmp_path), str(uv), sys.executable)
    wheel, source = (
        LocalFile.of(write_wheel(tmp_path, name, {"nvidia/cu13/bin/nvcc": b"#!/bin/sh\necho compiled\n"}))
        for name in ("nvidia_all", "source")
    )
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(source.path, "source")
    placed = (LocalFile.of(archive), str(archive))
    script = node_scripts.build_wheel(place, str(staging), placed, [], "-DX=1", [(wheel, str(wheel.path))])
    made = []
    for _ in range(2):
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.splitlines()[-3:] == ["compiled", f"{staging}/cuda", "failed 3"]
        made.append((staging / "cuda/bin/nvcc").stat())
    assert made[0].st_mtime_ns == made[1].st_mtime_ns
    assert "CUDACXX" not in node_scripts.build_wheel(place, str(staging), placed, [], "-DX=1")
