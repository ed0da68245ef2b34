"""NVML for machines without an NVIDIA GPU: a library that the real pynvml calls, compiled once, and its answers.

No file of `fixtures/` comes from a machine; each is composed from NVML's documentation, and says in its first line what
it shows.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import pynvml
import pytest

HERE = Path(__file__).parent
_folder = tempfile.TemporaryDirectory(prefix="rbee-nvml-")


@functools.cache
def library() -> Path:
    """libnvidia-ml.so.1, in a folder of its own."""
    made = Path(_folder.name) / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{made.name}"]
    subprocess.run(["gcc", *flags, "-o", made, HERE / "nvml.c"], check=True)
    return made


def fixture(name: str) -> Path:
    found = HERE / "fixtures" / f"{name}.txt"
    assert found.is_file()
    return found


def install(monkeypatch: pytest.MonkeyPatch, name: str | Path) -> None:
    """For one test pynvml asks the double. name: of a fixture, or a file."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library())))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("NVML_DOUBLE", str(name if isinstance(name, Path) else fixture(name)))
