"""Which libvulkan.so.1 ggml gets: the system's where there is one, else the one of the wheel. Each in a process of its
own: what is loaded stays."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REMOTE = Path(__file__).parents[5] / "remote"

_LOAD = """
import sys; sys.path.insert(0, sys.argv[1])
import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("loader", sys.argv[1] + "/rbee_remote/worker/llama/vulkan_loader.py")
loader = importlib.util.module_from_spec(spec); spec.loader.exec_module(loader)
if len(sys.argv) > 3: loader._NAME = sys.argv[3]
print(loader.load(pathlib.Path(sys.argv[2])))
print([line.split()[-1] for line in open("/proc/self/maps") if "libmine" in line][:1])
"""


def load(site_packages: Path, name: str, *, system: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(REMOTE), str(site_packages), name],
        capture_output=True,
        text=True,
        check=True,
        env={"LD_LIBRARY_PATH": str(system)},
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("library") / "libmine.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-xc", "-", "-Wl,-soname,libmine.so.1", "-o", str(made)],
        input=b"int vkEnumerateInstanceVersion(void) { return 0; }",
        check=True,
    )
    return made


@pytest.mark.parametrize(
    ("node_has", "wheel_has", "expected"),
    [(True, True, "libmine.so.1"), (True, False, "libmine.so.1"), (False, True, "of the wheel"), (False, False, "")],
)
def test_the_systems_loader_goes_first(
    tmp_path: Path, library: Path, node_has: bool, wheel_has: bool, expected: str
) -> None:
    system, brought = tmp_path / "system", tmp_path / "site/llama_cpp/lib"
    system.mkdir()
    brought.mkdir(parents=True)
    if node_has:
        shutil.copy(library, system)
    if wheel_has:
        shutil.copy(library, brought)
    said, mapped = load(tmp_path / "site", "libmine.so.1", system=system)
    assert said == (str(brought / "libmine.so.1") if expected == "of the wheel" else expected)
    where = {"libmine.so.1": f"['{system}/libmine.so.1']", "of the wheel": f"['{brought}/libmine.so.1']", "": "[]"}
    assert mapped == where[expected]
