"""What of llama.cpp's source is built for nodes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.setup.base.stoppable import StoppedError, never
from rbee.setup.wheels.source import cut_down

TOP = "llama_cpp_python-1.0"
#: The places that are changed, as they stand in 0.3.36.
FILES = {
    "CMakeLists.txt": 'set(LLAMA_BUILD_COMMON ON CACHE BOOL "Build llama.cpp common library" FORCE)\n'
    'set(LLAMA_BUILD_COMMON OFF CACHE BOOL "Build llama.cpp common library" FORCE)\n',
    "vendor/llama.cpp/CMakeLists.txt": "add_subdirectory(src)\n\nadd_subdirectory(vendor)\n\nif (LLAMA_BUILD_COMMON)\n",
    "vendor/llama.cpp/ggml/src/ggml-cpu/CMakeLists.txt": """
    target_sources(${GGML_CPU_NAME} PRIVATE ${GGML_CPU_SOURCES})
    target_compile_options(${GGML_CPU_NAME} PRIVATE ${ARCH_FLAGS})
""",
    "vendor/llama.cpp/ggml/src/CMakeLists.txt": """\
        ggml_add_cpu_backend_variant(x64)
            ggml_add_cpu_backend_variant(ivybridge      SSE42 AVX F16C)
            ggml_add_cpu_backend_variant(piledriver     SSE42 AVX F16C FMA)
        ggml_add_cpu_backend_variant(haswell            SSE42 AVX F16C FMA AVX2 BMI2)
        ggml_add_cpu_backend_variant(cannonlake         SSE42 AVX F16C FMA AVX2 BMI2 AVX512 AVX512_VBMI)
        ggml_add_cpu_backend_variant(icelake            SSE42 AVX F16C FMA AVX2 BMI2 AVX512 AVX512_VBMI AVX512_VNNI)
            ggml_add_cpu_backend_variant(zen4           SSE42 AVX F16C FMA AVX2 BMI2 AVX512 AVX512_VBMI AVX512_VNNI)
            ggml_add_cpu_backend_variant(armv8.6_1    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8)
            ggml_add_cpu_backend_variant(armv9.2_1    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8 SME)
            ggml_add_cpu_backend_variant(armv9.2_2    DOTPROD FP16_VECTOR_ARITHMETIC SVE MATMUL_INT8 SVE2 SME)
        elseif (CMAKE_SYSTEM_NAME MATCHES "Android")
            ggml_add_cpu_backend_variant(android_armv9.2_1    DOTPROD MATMUL_INT8 FP16_VECTOR_ARITHMETIC SVE SME)
""",
    "vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp": """\
    VkBool32 enable_best_practice = layer_settings;
    std::vector<vk::LayerSettingEXT> settings = {
        {
            "VK_LAYER_KHRONOS_validation",
        },
    };
    vk::LayerSettingsCreateInfoEXT layer_setting_info(settings);
    vk::InstanceCreateInfo instance_create_info({}, &app_info, layers, extensions, &layer_setting_info);
    vk_instance.instance = vk::createInstance(instance_create_info);
""",
    "vendor/llama.cpp/src/CMakeLists.txt": """
target_include_directories(llama PUBLIC ../include)
target_compile_features   (llama PRIVATE cxx_std_17) # don't bump

target_link_libraries(llama PUBLIC ggml)
""",
    "vendor/llama.cpp/src/llama.cpp": "int x;\n",
    "vendor/llama.cpp/docs/build.md": "long\n",
    "vendor/llama.cpp/models/big.gguf": "longer\n",
    "vendor/llama.cpp/src/models/llama.cpp": "int y;\n",
    ".git/HEAD": "ref\n",
}


def archive(folder: Path, files: Mapping[str, str]) -> Path:
    path = folder / f"{TOP}.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{TOP}/{name}")
            entry.size = len(text.encode())
            packed.addfile(entry, io.BytesIO(text.encode()))
    return path


def cut(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    target = folder / "cut.tar.gz"
    cut_down(archive(folder, files), target, never)
    with tarfile.open(target) as packed:
        found = {entry.name.removeprefix(f"{TOP}/"): packed.extractfile(entry) for entry in packed}
        return {name: content.read().decode() for name, content in found.items() if content}


def test_what_no_library_is_made_of_stays_out_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    got = cut(tmp_path, FILES)
    assert set(FILES) - set(got) == {".git/HEAD", "vendor/llama.cpp/docs/build.md", "vendor/llama.cpp/models/big.gguf"}
    assert got["vendor/llama.cpp/src/models/llama.cpp"] == "int y;\n"
    assert " ON " not in got["CMakeLists.txt"]
    assert got["vendor/llama.cpp/CMakeLists.txt"] == "add_subdirectory(src)\n\n\nif (LLAMA_BUILD_COMMON)\n"


def test_vulkan_is_compiled_with_headers_that_know_no_settings_of_layers(tmp_path: Path) -> None:
    text = cut(tmp_path, FILES)["vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp"]
    assert "LayerSetting" not in text
    assert "layer_setting_info" not in text
    assert text.endswith(
        "    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, extensions);\n"
        "    vk_instance.instance = vk::createInstance(instance_create_info);\n"
    )


def test_the_cpu_variants_that_make_a_difference_stay(tmp_path: Path) -> None:
    lines = cut(tmp_path, FILES)["vendor/llama.cpp/ggml/src/CMakeLists.txt"].splitlines()
    names = [line.partition("(")[2].split()[0].rstrip(")") for line in lines if "variant" in line]
    assert names == ["x64", "ivybridge", "haswell", "armv8.6_1", "android_armv9.2_1"]
    assert 'elseif (CMAKE_SYSTEM_NAME MATCHES "Android")' in lines[-2]


def test_the_small_files_of_a_variant_are_one_unit_and_the_large_ones_their_own(tmp_path: Path) -> None:
    text = cut(tmp_path, FILES)["vendor/llama.cpp/ggml/src/ggml-cpu/CMakeLists.txt"]
    before, properties, source = text.partition("    set_target_properties(")
    assert before.endswith('PRIVATE ${GGML_CPU_SOURCES})\n    if (GGML_SYSTEM_ARCH STREQUAL "x86")\n')
    assert "${GGML_CPU_NAME} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)\n" in properties + source
    assert "ggml-cpu/vec.cpp\n        PROPERTIES UNITY_GROUP small)\n    endif()\n" in source
    assert "/ops.cpp" not in source
    assert "/mmq.cpp" not in source  # reads ggml-common.h as C, the others as C++
    assert source.endswith("    target_compile_options(${GGML_CPU_NAME} PRIVATE ${ARCH_FLAGS})\n")


def test_the_units_of_libllama_read_their_headers_once(tmp_path: Path) -> None:
    text = cut(tmp_path, FILES)["vendor/llama.cpp/src/CMakeLists.txt"]
    header = "$<$<COMPILE_LANGUAGE:CXX>:${CMAKE_CURRENT_SOURCE_DIR}/models/models.h>"
    assert f"# don't bump\ntarget_precompile_headers(llama PRIVATE {header})\n\ntarget_link" in text


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".txt", "-vulkan.cpp"))])
def test_a_source_without_the_places_to_change_is_not_built(tmp_path: Path, name: str) -> None:
    with pytest.raises(NodeError, match=f"not the one that this rbee builds: {name} has 0 places"):
        cut(tmp_path, FILES | {name: "another version\n"})


def test_whoever_no_longer_waits_stops_it(tmp_path: Path) -> None:
    def stop() -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        cut_down(archive(tmp_path, FILES), tmp_path / "cut.tar.gz", stop)
