"""What travels to a GPU machine, and the model of random weights that is made there."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks import llama_cpp
from benchmarks.gpu import __main__ as steps
from benchmarks.gpu import build, model, pack, source, speed
from benchmarks.gpu.shape import SHAPES, Shape, has_more_bits
from benchmarks.gpu.work import Work
from benchmarks.harness import Comparison, Report
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target

TARGET = Target("Linux", "x86_64", "glibc", (2, 39), (3, 12))
LLAMA = "vendor/llama.cpp"


@pytest.mark.parametrize(
    "inside",
    [
        *("CMakeLists.txt", "pyproject.toml", "README.md", "llama_cpp/llama.py", f"{LLAMA}/CMakeLists.txt"),
        *(f"{LLAMA}/ggml/src/ggml-cuda/mmq.cu", f"{LLAMA}/src/llama.cpp", f"{LLAMA}/common/arg.cpp"),
        *(f"{LLAMA}/vendor/nlohmann/json.hpp", f"{LLAMA}/tools/CMakeLists.txt", f"{LLAMA}/tools/server/server.cpp"),
        *(f"{LLAMA}/tools/mtmd/clip.cpp", f"{LLAMA}/tools/llama-bench/main.cpp", f"{LLAMA}/tools/ui/CMakeLists.txt"),
        *(f"{LLAMA}/tools/ui/ui.cpp.in", f"{LLAMA}/tools/ui/sources.cmake", f"{LLAMA}/scripts/ui-assets.cmake"),
        source.VOCABULARY,
    ],
)
def test_what_the_programs_are_made_of_travels(inside: str) -> None:
    assert not source.is_left_out(inside)


@pytest.mark.parametrize(
    "inside",
    [
        *(".git/objects/pack/x.pack", "docs/index.md", "examples/a.py", "tests/test_llama.py"),
        *(f"{LLAMA}/docs/build.md", f"{LLAMA}/tests/test.cpp", f"{LLAMA}/models/ggml-vocab-gpt-2.gguf"),
        *(f"{LLAMA}/tools/ui/src/app.html", f"{LLAMA}/tools/ui/package-lock.json", f"{LLAMA}/tools/tts/tts.cpp"),
        f"{LLAMA}/.github/workflows/build.yml",
    ],
)
def test_the_rest_stays_here(inside: str) -> None:
    assert source.is_left_out(inside)


def test_the_sources_are_cut_and_changed_or_refused(tmp_path: Path) -> None:
    tools = "    add_subdirectory(batched-bench)\n    add_subdirectory(rpc)\n    add_subdirectory(results)\nendif()\n"
    files = {
        f"{LLAMA}/tools/CMakeLists.txt": tools,
        f"{LLAMA}/tools/server/CMakeLists.txt": "add_executable(x)\ninstall(TARGETS ${TARGET} RUNTIME)\n",
        f"{LLAMA}/docs/build.md": "left out",
    }
    cut = source.cut_down(sdist(tmp_path / "a.tar.gz", files), tmp_path / "cut.tar.xz")
    with tarfile.open(cut) as packed:
        assert sorted(packed.getnames()) == sorted(f"x-1/{name}" for name in files if "docs" not in name)
        inside = packed.extractfile(f"x-1/{LLAMA}/tools/CMakeLists.txt")
        assert inside is not None
        text = inside.read().decode()
    assert "add_subdirectory(server)" in text
    assert "rpc" not in text
    files[f"{LLAMA}/tools/CMakeLists.txt"] = "another version\n"
    with pytest.raises(source.NotThatSourceError, match="0 places"):
        source.cut_down(sdist(tmp_path / "b.tar.gz", files), tmp_path / "other.tar.xz")
    with pytest.raises(source.NotThatSourceError, match="has no"):
        source.cut_down(sdist(tmp_path / "c.tar.gz", {"CMakeLists.txt": ""}), tmp_path / "none.tar.xz")


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((50_000_000, 6_000_000, 7_000_000), ""),
        ((55_000_001, 6_000_000, 7_000_000), "pack and checkout are 61.0 MB"),
        ((50_000_000, 6_000_000, 40_000_001), "the sources are 40.0 MB"),
    ],
)
def test_what_travels_has_a_bound(sizes: tuple[int, int, int], told: str) -> None:
    found = pack.too_large(*sizes)
    assert found.startswith(told)
    assert bool(found) == bool(told)


@pytest.mark.parametrize("python", [(3, 11), (3, 12), (3, 13)])
def test_the_environment_of_the_steps_has_one_version_of_each_project(python: tuple[int, int]) -> None:
    target = Target("Linux", "x86_64", "glibc", (2, 39), python)
    kept, for_nodes = pack.chosen_lines(target)
    names = [line.name for line in kept]
    assert len(names) == len(set(names))
    assert {"pytest", "pytest-asyncio", "asyncssh", "scikit-build-core", "ninja", "hatchling", "numpy"} <= {*names}
    assert not {"cmake", "uv", "hf-xet", "litellm", "mypy"} & {*names}
    assert for_nodes == requirements.for_runtime(target)
    assert {line.line() for line in for_nodes} <= {line.line() for line in kept}


def test_cmake_travels_where_it_is_asked_for() -> None:
    kept, _ = pack.chosen_lines(TARGET, with_cmake=True)
    assert "cmake" in {line.name for line in kept}


def test_the_shape_is_that_of_the_real_model() -> None:
    """339 tensors and 7.62 B weights, as Qwen2.5-7B-Instruct has; its file of Q4_K_M has 4.68 GB."""
    tensors = list(SHAPES["qwen2.5-7b"].tensors())
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 339
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 7_615_616_512
    assert SHAPES["qwen2.5-7b"].bytes == pytest.approx(4.68e9, rel=0.005)
    by_name = {tensor.name: tensor for tensor in tensors}
    assert by_name["blk.0.attn_k.weight"].shape == (512, 3584)
    assert by_name["blk.0.ffn_down.weight"].shape == (3584, 18944)
    assert {by_name[f"blk.{layer}.attn_v.weight"].kind for layer in (0, 2, 5, 27)} == {"Q6_K"}
    assert {by_name[f"blk.{layer}.attn_v.weight"].kind for layer in (3, 4, 6)} == {"Q4_K"}


@pytest.mark.parametrize("layers", [8, 28, 32, 80])
def test_about_half_of_the_layers_have_more_bits(layers: int) -> None:
    assert 0.4 <= sum(has_more_bits(layer, layers) for layer in range(layers)) / layers <= 0.6


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_blocks_are_weights_around_nought(kind: str) -> None:
    made = model.blocks(kind, 400, 1024, np.random.default_rng(1))
    values = gguf.quants.dequantize(made.reshape(400, -1), gguf.GGMLQuantizationType[kind])
    assert values.std() == pytest.approx(1 / math.sqrt(1024), rel=0.02)
    assert abs(values.mean()) < 0.02 * values.std() + 0.001


def test_a_model_is_written_as_its_shape_says(tmp_path: Path) -> None:
    tiny = Shape("tiny", layers=2, width=256, inner=512, heads=4, heads_kv=2, vocabulary=300)
    path = model.write(tmp_path / "tiny.gguf", tiny, vocabulary(tmp_path / "vocabulary.gguf"))
    reader = gguf.GGUFReader(path)
    found = {
        tensor.name: (tuple(map(int, reversed(tensor.shape))), tensor.tensor_type.name) for tensor in reader.tensors
    }
    assert found == {tensor.name: (tensor.shape, tensor.kind) for tensor in tiny.tensors()}
    assert [int(tensor.n_bytes) for tensor in reader.tensors] == [tensor.bytes for tensor in tiny.tensors()]
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 300
    assert tokens[:2] == ["a", "<|end|>"]
    assert tokens[-1] == "[PAD299]"
    assert model.endings(path) == (1,)
    assert list(tmp_path.glob("*.part")) == []
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    assert (norm.data == 1).all()


def test_the_build_is_for_one_gpu_and_its_programs_stay_out_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no driver
    flags = build.flags("cuda")
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DLLAMA_TOOLS_INSTALL=OFF"} <= {*flags}
    assert "-DGGML_CPU_ALL_VARIANTS=ON" not in flags
    assert len(flags) == len(set(flags))
    assert not any("CUDA" in flag for flag in build.flags("cpu"))


def test_the_libraries_of_the_toolkit_are_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMake leaves their folder out of what it links: nvcc knows it by itself."""
    toolkit = tmp_path / "cuda-13"
    (toolkit / "bin").mkdir(parents=True)
    (toolkit / "bin" / "nvcc").write_text("#!/bin/sh\n")
    (toolkit / "bin" / "nvcc").chmod(0o755)
    (tmp_path / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not any("rpath" in flag for flag in build.flags("cuda"))
    (toolkit / "lib64").mkdir()
    assert f"-DCMAKE_MODULE_LINKER_FLAGS=-Wl,-rpath,{toolkit}/lib64" in build.flags("cuda")
    assert not any("rpath" in flag for flag in build.flags("cpu"))


def test_the_build_is_for_what_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMake 3.22, as Ubuntu 22.04 has it, does not know `native`."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 9.0; echo 8.9; echo 9.0; echo '[N/A]'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "-DCMAKE_CUDA_ARCHITECTURES=89;90" in build.flags("cuda")


def test_a_figure_is_kept_when_it_is_there_whatever_comes_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "out" / "gpu_speed.json"

    def failing() -> Iterator[Comparison]:
        yield Comparison("one", 1.0, 2.0, "x")
        assert [figure["name"] for figure in json.loads(written.read_text())["figures"]] == ["one"]
        raise RuntimeError("no more memory")

    report = Report("gpu_speed", [], {})
    parts = (failing(), iter([Comparison("two", 1.0, 2.0, "x")]))
    assert steps.measure_all(parts, report, written.parent) == 1
    assert [figure["name"] for figure in json.loads(written.read_text())["figures"]] == ["one", "two"]
    assert "no more memory" in capsys.readouterr().err


def test_logs_come_back_with_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    kept = Work(tmp_path, tmp_path, "cuda")
    kept.keep_logs(tmp_path / "none")
    assert not kept.out.exists()
    (tmp_path / "log").mkdir()
    for path in (tmp_path / "log" / "worker-1.log", tmp_path / "sshd.log"):
        path.write_text(path.name)
    for _ in range(2):
        kept.keep_logs(tmp_path / "sshd.log", tmp_path / "log")
    assert sorted(path.name for path in kept.out.glob("logs-*/*")) == ["sshd.log"] * 2 + ["worker-1.log"] * 2


def test_llama_cpps_own_programs_find_the_driver_and_no_other_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "libggml-base.so.0").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}/driver:{tmp_path}/other:")
    assert llama_cpp._environment()["LD_LIBRARY_PATH"] == f"{tmp_path}/driver"


def test_a_build_that_takes_too_long_is_ended_as_by_ctrl_c_with_all_that_it_started(tmp_path: Path) -> None:
    log, done = tmp_path / "log", tmp_path / "done"
    ninja = f"trap 'echo tidy > {done}; exit 2' INT; echo '  [7/231] g++'; while :; do sleep 0.05; done"
    command = ["sh", "-c", f'trap "" INT; sh -c "$0" & echo $! > {tmp_path}/pid; wait', ninja]
    began = time.monotonic()
    assert build.run_for(["bash", "-c", ninja], dict(os.environ), log, 0.5) is None
    assert done.read_text() == "tidy\n", "it could note what it has"
    assert build._at(log) == ", 7 of 231 files of this call"
    build._END_S, before = 0.3, build._END_S
    try:
        assert build.run_for(command, dict(os.environ), log, 0.5) is None, "who does not listen is killed"
    finally:
        build._END_S = before
    assert time.monotonic() - began < 30
    assert build.run_for(["sh", "-c", "exit 3"], dict(os.environ), log, 20.0) == 3


def test_one_comparison_that_fails_on_a_node_leaves_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> list[Comparison]:
        raise FileNotFoundError("llama-bench")

    good = [Comparison("tg128", 1.0, 2.0, "x")]
    figures = speed.each(fails, lambda: good)
    assert next(figures) == good[0]
    with pytest.raises(RuntimeError, match="1 of 2 comparisons failed"):
        next(figures)
    assert "FileNotFoundError: llama-bench" in capsys.readouterr().err
    assert list(speed.each(lambda: good)) == good


def test_an_unfinished_build_is_told_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unfinished(work: Work, limit_s: float) -> None:
        raise build.UnfinishedError(f"not done after {limit_s:.0f} s")

    monkeypatch.setattr(build, "build", unfinished)
    asked = argparse.Namespace(limit=540.0)
    assert steps._build(Work(tmp_path, tmp_path, "cpu"), asked) == 75
    assert capsys.readouterr().out == "build: not done after 540 s\n"


@pytest.mark.parametrize(("ours", "reached"), [((97.0, 99.0, 98.0), True), ((96.0, 96.9, 90.0), False)])
def test_a_speed_is_reached_from_its_goal_up(ours: tuple[float, ...], reached: bool) -> None:
    figure = speed.faster("tg128", {"llama-bench": (100.0, 100.0), "rbee": ours}, 0.97)
    assert figure.reached is reached
    assert figure.against == "llama-bench"


def sdist(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as sink:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"x-1/{name}")
            entry.size = len(text)
            sink.addfile(entry, io.BytesIO(text.encode()))
    return path


def vocabulary(path: Path) -> Path:
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "<|end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL, gguf.TokenType.CONTROL])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
