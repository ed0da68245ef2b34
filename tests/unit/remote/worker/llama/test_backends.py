from __future__ import annotations

import pytest

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from rbee_remote.worker.llama.backends import Device, choose

CPU = Device(1, 0, "cpu", "AMD EPYC")
CUDA = [Device(2, 1, "cuda", "NVIDIA H100", "CUDA0"), Device(3, 1, "cuda", "NVIDIA H100", "CUDA1")]
VULKAN = Device(4, 1, "vulkan", "NVIDIA H100", "Vulkan0")
INTEGRATED = Device(5, 2, "vulkan", "Intel Iris", "Vulkan1")
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
    assert choose(available, WorkerOptions(backend=backend, gpu_layers=gpu_layers)) == expected


def test_a_backend_that_is_not_there_is_an_error_with_what_is() -> None:
    with pytest.raises(RemoteError, match="cuda is not available here, only blas, cpu") as caught:
        choose([CPU, BLAS], WorkerOptions(backend="cuda"))
    assert caught.value.code is ErrorCode.BACKEND_UNAVAILABLE
    assert caught.value.details == {"backend": "cuda", "available": ["blas", "cpu"]}


@pytest.mark.parametrize(
    ("wanted", "split", "expected"),
    [
        (("CUDA1",), (), [CUDA[1]]),
        (("cuda1", "CUDA0"), (1.0, 2.0), [CUDA[1], CUDA[0]]),
        (("1",), (), [CUDA[1]]),
        ((), (1.0, 2.0), CUDA),
        (("CUDA2",), (), "no device 'CUDA2' on this node"),
        (("Vulkan0",), (), "no device 'Vulkan0' on this node"),
        (("2",), (), "no device '2' on this node"),
        (("CUDA0", "0"), (), "named twice"),
        ((), (1.0,), "1 shares for 2 GPUs"),
        (("CUDA0",), (1.0, 1.0), "2 shares for 1 GPUs"),
    ],
)
def test_devices_go_by_ggmls_name_or_their_number(
    wanted: tuple[str, ...], split: tuple[float, ...], expected: list[Device] | str
) -> None:
    available = [*CUDA, VULKAN, CPU]
    options = WorkerOptions(backend="cuda", devices=wanted, tensor_split=split)
    if isinstance(expected, list):
        assert choose(available, options) == expected
        return
    with pytest.raises(RemoteError, match=expected) as caught:
        choose(available, options)
    assert caught.value.code is ErrorCode.USAGE
    assert "CUDA0" in f"{caught.value.hint} {caught.value.message}"
