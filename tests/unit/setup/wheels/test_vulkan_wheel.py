"""A wheel with Vulkan brings the loader, which looks for drivers; what belongs to a driver stays the node's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rbee.setup.wheels import portable
from tests.unit.setup.tiny_packages import write_wheel

LIBRARY = "bin/libggml-gpu.so"


def wheel_that_needs(folder: Path, needed: str) -> Path:
    """With one library, which is linked to `needed`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder.mkdir()
    command = [compiler, "-shared", "-fPIC", "-xc", "-"]
    subprocess.run([*command, f"-Wl,-soname,{needed}", "-o", folder / needed], input=b"int of_it;", check=True)
    subprocess.run(
        [*command, "-Wl,--no-as-needed", "-o", folder / "library", f"-L{folder}", f"-l:{needed}"],
        input=b"int ours;",
        check=True,
    )
    files = {LIBRARY: (folder / "library").read_bytes()}
    return write_wheel(folder, "llama_cpp_python", files, tag="py3-none-linux_x86_64")


@pytest.mark.parametrize(
    ("needed", "brought"),
    [
        ("libvulkan.so.1", {"libvulkan.so.1"}),
        ("libgomp.so.1", {"libgomp.so.1"}),
        ("libcuda.so.1", set()),
        ("libamdhip64.so.6", set()),
        ("librocblas.so.4", set()),
    ],
)
def test_what_is_brought_along(tmp_path: Path, needed: str, brought: set[str]) -> None:
    wheel = wheel_that_needs(tmp_path / "made", needed)
    assert portable.missing_libraries(wheel) == brought
    portable.make_portable(wheel, tmp_path / wheel.name, lambda name: tmp_path / "made" / name)
    with portable.opened(tmp_path / wheel.name) as archive:
        inside = {Path(name).name for name in archive.namelist() if name.startswith("llama_cpp/lib/")}
    assert inside == brought


def test_a_backend_travels_once(tmp_path: Path) -> None:
    names = ["bin/libggml-vulkan.so", "llama_cpp/lib/libggml-vulkan.so", "llama_cpp/lib/libggml-base.so"]
    elsewhere = ["llama_cpp/lib/libggml-cuda.so", "llama_cpp/lib/libllama.so"]
    files = dict.fromkeys([*names, *elsewhere], b"no library at all")
    wheel = write_wheel(tmp_path, "llama_cpp_python", files, tag="py3-none-linux_x86_64")
    target = tmp_path / "portable" / wheel.name
    target.parent.mkdir()
    portable.make_portable(wheel, target, lambda _: None)
    with portable.opened(target) as archive:
        inside = {name for name in archive.namelist() if name.endswith(".so")}
    assert inside == {*files} - {"llama_cpp/lib/libggml-vulkan.so"}


def test_a_wheel_of_somebody_else_may_leave_the_loader_to_the_node() -> None:
    assert portable.not_provided({"libvulkan.so.1", "libc.so.6", "libzstd.so.1"}) == {"libzstd.so.1"}
