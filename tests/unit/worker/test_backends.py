from __future__ import annotations

import pytest

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.worker.llama.backends import Device, choose

CPU = Device(1, 0, "cpu", "AMD EPYC")
CUDA = [Device(2, 1, "cuda", "NVIDIA H100"), Device(3, 1, "cuda", "NVIDIA H100")]
VULKAN = Device(4, 1, "vulkan", "NVIDIA H100")
INTEGRATED = Device(5, 2, "vulkan", "Intel Iris")
BLAS = Device(6, 3, "blas", "OpenBLAS")


@pytest.mark.parametrize(
    ("available", "backend", "gpu_layers", "expected"),
    [
        ([CPU], "auto", None, []),
        ([CPU, BLAS], "auto", None, []),
        ([*CUDA, CPU], "auto", None, CUDA),
        ([*CUDA, CPU], "cpu", None, []),
        ([*CUDA, CPU], "auto", 0, []),
        ([*CUDA, CPU], "cuda", 10, CUDA),
        ([*CUDA, VULKAN, CPU], "auto", None, CUDA),
        ([*CUDA, VULKAN, CPU], "vulkan", None, [VULKAN]),
        ([INTEGRATED, CPU], "auto", None, [INTEGRATED]),
        ([INTEGRATED, VULKAN, CPU], "vulkan", None, [VULKAN]),
    ],
)
def test_devices_of_one_backend_are_chosen(
    available: list[Device], backend: str, gpu_layers: int | None, expected: list[Device]
) -> None:
    assert choose(available, backend, gpu_layers) == expected


def test_a_backend_that_is_not_there_is_an_error_with_what_is() -> None:
    with pytest.raises(RemoteError, match="cuda is not available here, only blas, cpu") as caught:
        choose([CPU, BLAS], "cuda", None)
    assert caught.value.code is ErrorCode.BACKEND_UNAVAILABLE
    assert caught.value.details == {"backend": "cuda", "available": ["blas", "cpu"]}
