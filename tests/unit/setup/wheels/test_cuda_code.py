"""What a library has for GPUs is read from it: headers as nvcc 13.0 wrote them, in a library as gcc links it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.setup.base.cuda import Code
from rbee.setup.wheels import cuda_code
from tests.unit.setup.cuda_library import CC, container, library


@pytest.mark.skipif(CC is None, reason="needs cc")
def test_what_all_parts_of_a_library_have_is_what_it_has(tmp_path: Path) -> None:
    first = container("sm_75", "sm_90", "sm_120a", "compute_90")
    second = container("sm_90", "sm_90a", "sm_120a", "compute_90", "compute_100f")
    found = cuda_code.of_library(library(tmp_path, first, bytes(24), second))
    assert found == Code.read("13 sass 9.0 12.0a ptx 9.0 by 13.0")


@pytest.mark.skipif(CC is None, reason="needs cc")
def test_families_and_the_toolkit_that_is_needed_are_told(tmp_path: Path) -> None:
    found = cuda_code.of_library(library(tmp_path, container("sm_100f"), needs="libcublas.so.12"))
    assert found == Code.read("12 sass 10.0f ptx by")
    assert cuda_code.of_library(library(tmp_path, needs="libm.so.6")) in (None, Code(0))


@pytest.mark.skipif(CC is None, reason="needs cc")
@pytest.mark.parametrize(
    "damaged",
    [
        b"\x01" * 64,
        container("sm_90")[:-8],
        struct.pack("<IHHQ", 0xBA55ED50, 2, 16, 0),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**63),
    ],
)
def test_what_is_not_understood_is_refused(damaged: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="code for CUDA"):
        cuda_code.of_library(library(tmp_path, damaged))


def code(*containers: bytes) -> str:
    data = b"".join(containers)
    return cuda_code._code(io.BytesIO(data), 0, len(data), 13).text


def test_a_file_without_kernels_takes_nothing_from_the_others() -> None:
    assert code(container("sm_75", "compute_90"), container()) == "13 sass 7.5 ptx 9.0 by 13.0"


def test_of_ptx_the_device_linkers_container_has_none() -> None:
    linker, files = container("sm_75"), [container("sm_75", "compute_90")] * 2
    assert code(linker, *files) == code(*files, linker) == "13 sass 7.5 ptx 9.0 by 13.0"
    assert code(linker, linker, *files) == "13 sass 7.5 ptx by"
    assert code(linker) == "13 sass 7.5 ptx by"
    # Which of its own code it has counts: with what else it has, it may be a file of another kind.
    assert code(container("sm_90"), *files) == "13 sass ptx 9.0 by 13.0"


@given(st.binary(max_size=300), st.integers(0, 200))
def test_nothing_in_it_is_believed(noise: bytes, at: int) -> None:
    whole = bytearray(container("sm_75", "compute_90"))
    whole[at : at + len(noise)] = noise
    try:
        cuda_code._code(io.BytesIO(bytes(whole)), 0, len(whole), 13)
    except ValueError:
        return
