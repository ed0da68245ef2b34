"""What a machine needs to compile for Vulkan and ROCm: all of it, wherever distributions and SDKs put it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbee.setup.base.platforms import Target
from rbee.setup.wheels import building, rocm_sdk, vulkan_sdk

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
    ("architectures", "more"),
    [((), set()), (("gfx1100",), set()), (("gfx1201", "gfx90a"), {"gfx1201"}), (("gfx1100; rm -rf /",), set())],
)
def test_rocm_is_compiled_for_common_gpus_and_those_there_are(architectures: tuple[str, ...], more: set[str]) -> None:
    common = {"gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1102"}
    switch, targets = rocm_sdk.flags(architectures)
    assert switch == "-DGGML_HIP=ON"
    assert set(targets.removeprefix("-DGPU_TARGETS=").split(";")) == common | more


@pytest.mark.parametrize(("backend", "said"), [("vulkan", "apt install glslc"), ("rocm", "ROCm 6.1"), ("cuda", "nvcc")])
def test_who_cannot_build_is_told_how_to(monkeypatch: pytest.MonkeyPatch, backend: str, said: str) -> None:
    monkeypatch.setenv("ROCM_PATH", "/nowhere")
    lacking = {"nvcc", "glslc", "hipcc"}
    monkeypatch.setattr("shutil.which", lambda name, **_: None if name in lacking else f"/usr/bin/{name}")
    error = building.no_way(Target.here(), backend)
    assert "no `" in error.message
    assert said in error.hint
    assert 'backend = "cpu"' in error.hint


def test_a_node_of_amds_is_compiled_for() -> None:
    target = replace(Target.here(), amdgpu=frozenset({"gfx1201"}))
    assert ";gfx1201" in building.cmake_flags(target, "rocm")
    assert "gfx" not in building.cmake_flags(target, "vulkan")
