"""CUDA's libraries of a runtime are in the process before llama.cpp's own is, which wants them by their names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rbee_remote.system import cuda_libraries

CC = shutil.which("cc")
PROGRAM = """
import ctypes, sys
from pathlib import Path
from rbee_remote.system.cuda_libraries import preload
loaded = preload(Path(sys.argv[1]))
print(len(loaded), ctypes.CDLL(sys.argv[2]).answer())
"""


@pytest.mark.skipif(CC is None or sys.platform != "linux", reason="needs cc, and ELF")
def test_what_wants_them_by_name_finds_them(tmp_path: Path) -> None:
    """As ggml's library for CUDA does: it needs cublas, which needs cublasLt, and no path says where they are."""
    runtime = tmp_path / "runtime"
    for package, name, code, needs in [
        ("a" * 64, "libcudart.so.13", "int rt(void) { return 1; }", []),
        ("b" * 64, "libcublasLt.so.13", "int lt(void) { return 20; }", []),
        ("b" * 64, "libcublas.so.13", "int lt(void); int blas(void) { return lt() + 1; }", ["libcublasLt.so.13"]),
    ]:
        _compile(runtime / "libraries" / package, name, code, needs)
    folder = runtime / "libraries" / ("b" * 64)
    wanting = _compile(tmp_path, "libggml.so", "int blas(void); int answer(void) { return blas(); }", [], folder)
    words = [sys.executable, "-c", PROGRAM, str(runtime), str(wanting)]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split() == ["3", "21"]


def test_a_runtime_without_any_and_one_with_damaged_ones_go_on(tmp_path: Path) -> None:
    assert cuda_libraries.preload(tmp_path) == []
    folder = tmp_path / "libraries" / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / "libcudart.so.13").write_bytes(b"no library")
    assert cuda_libraries.preload(tmp_path) == []


def _compile(folder: Path, name: str, code: str, needs: list[str], linked: Path | None = None) -> Path:
    assert CC is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "code.c").write_text(code)
    libraries = [str(linked / "libcublas.so.13")] if linked else needs
    words = [CC, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--allow-shlib-undefined", "-o", name, "code.c"]
    subprocess.run([*words, *libraries], cwd=folder, check=True, timeout=60)
    return folder / name
