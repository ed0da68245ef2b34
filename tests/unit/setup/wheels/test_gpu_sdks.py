"""What a machine needs to compile for Vulkan and ROCm: all of it, wherever distributions and SDKs put it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.setup.wheels import rocm_sdk, vulkan_sdk

DEBIAN = (
    "bin/glslc",
    "include/vulkan/vulkan.hpp",
    "lib/libvulkan.so",
    "share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake",
)


def machine(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch(mode=0o755)
    return root


@pytest.fixture(autouse=True)
def compiler_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan_sdk, "local_library", lambda _: None)


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        (None, None),
        (0, "glslc"),
        (1, "vulkan/vulkan.hpp"),
        (2, "libvulkan.so"),
        (3, "SPIRV-HeadersConfig.cmake"),
    ],
)
def test_what_lacks_is_named(tmp_path: Path, without: int | None, expected: str | None) -> None:
    usr = machine(tmp_path / "usr", *(name for index, name in enumerate(DEBIAN) if index != without))
    assert vulkan_sdk.missing({"PATH": str(usr / "bin")}, [str(usr)]) == expected


@pytest.mark.parametrize("folder", ["lib/x86_64-linux-gnu/cmake", "lib64/cmake", "lib/cmake", "share/cmake"])
def test_package_files_where_distributions_put_them(tmp_path: Path, folder: str) -> None:
    usr = machine(tmp_path, *DEBIAN[:3], f"{folder}/SPIRV-Headers/SPIRV-HeadersConfig.cmake")
    assert vulkan_sdk.missing({"PATH": str(usr / "bin")}, [str(usr)]) is None


def test_an_sdk_has_all_of_it(tmp_path: Path) -> None:
    sdk = machine(tmp_path / "1.4.309/x86_64", *DEBIAN)
    assert vulkan_sdk.missing({"PATH": "/nowhere"}, []) == "glslc"
    assert vulkan_sdk.missing({"PATH": "/nowhere", "VULKAN_SDK": str(sdk)}, []) is None


def test_a_loader_that_the_compiler_finds_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usr = machine(tmp_path, *(name for name in DEBIAN if "libvulkan" not in name))
    monkeypatch.setattr(vulkan_sdk, "local_library", lambda _: Path("/usr/lib/x86_64-linux-gnu/libvulkan.so"))
    assert vulkan_sdk.missing({"PATH": str(usr / "bin")}, [str(usr)]) is None


def test_hipcc_on_the_path_or_where_amd_puts_it(tmp_path: Path) -> None:
    rocm = machine(tmp_path / "rocm", "bin/hipcc")
    assert rocm_sdk.missing({"PATH": "/nowhere"}, str(tmp_path / "none")) == "hipcc"
    assert rocm_sdk.missing({"PATH": "/nowhere"}, str(rocm)) is None
    assert rocm_sdk.missing({"PATH": "/nowhere", "ROCM_PATH": str(rocm)}, str(tmp_path / "none")) is None
    assert rocm_sdk.missing({"PATH": str(rocm / "bin")}, str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (("gfx1100",), "gfx1100"),
        (("gfx1100", "gfx90a"), "gfx1100;gfx90a"),
        (("gfx1100; rm -rf /", "gfx942"), "gfx942"),
    ],
)
def test_rocm_is_compiled_for_the_gpus_there_are(architectures: tuple[str, ...], expected: str) -> None:
    assert rocm_sdk.flags(architectures) == ("-DGGML_HIP=ON", f"-DGPU_TARGETS={expected}")


def test_where_no_gpu_is_known_rocm_is_compiled_for_the_common_ones() -> None:
    targets = rocm_sdk.flags(())[1]
    assert targets.startswith("-DGPU_TARGETS=gfx906;")
    assert "gfx1100" in targets
