"""Which runtime a node gets: its GPU's where llama.cpp is there for it, else the CPU's, and what is said of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbee.inventory import Node
from rbee.node.graphics import Card, Graphics, Icd
from rbee.node.probe import Gpu, Probe
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import KEEPER, Builders
from rbee.setup.runtime import Runtime, target_of
from rbee.setup.wheels import building, toolkit
from rbee.setup.wheels.cache import WheelCache
from tests.unit.setup.cuda_library import CC, container, library
from tests.unit.setup.wheel_server import make_wheel

NODE = Node(name="gpu1", host="h")
L4 = Gpu("nvidia", "NVIDIA L4", 24000, 23000, "580.65", (8, 9))
H100 = Gpu("nvidia", "NVIDIA H100", 80000, 79000, "580.65", (9, 0))
AMD = Graphics(cards=(Card("renderD128", "amd", "Radeon", "amdgpu"),), icds=(Icd("radeon_icd.x86_64.json", "amd"),))


def probe(*gpus: Gpu, **changes: object) -> Probe:
    found = Probe(
        system="Linux", machine="x86_64", libc="glibc 2.36", home="/h", python="/usr/bin/python3",
        python_version=(3, 11, 2), gpus=gpus, cuda=(13, 0),
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelCache:
    """Of a machine that has no compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return WheelCache(tmp_path / "cache", tmp_path / "logs")


def with_compilers(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


def test_without_a_wheel_the_cpu_answers_and_the_command_that_makes_one_is_named(cache: WheelCache) -> None:
    found = Runtime.choose(probe(L4), NODE, cache)
    assert (found.backend, found.better) == ("cpu", ("cuda",))
    assert "`rbee wheels build --for gpu1`" in found.notice
    assert "NVIDIA L4" in found.notice
    assert Runtime.choose(probe(), NODE, cache).notice == ""


def test_a_machine_with_nvcc_compiles_for_a_gpu_only_when_asked(cache: WheelCache, tmp_path: Path) -> None:
    with_compilers(tmp_path, "c++", "nvcc")
    here = replace(probe(L4), libc=_libc_here())
    assert Runtime.choose(here, NODE, cache).backend == "cpu"
    assert Runtime.choose(here, NODE, cache, wait_for_gpu=True).backend == "cuda"


def test_no_nvcc_is_needed_where_the_locked_toolkit_compiles_for_the_gpu(cache: WheelCache, tmp_path: Path) -> None:
    with_compilers(tmp_path, "c++")
    here = replace(probe(L4), libc=_libc_here())
    if not toolkit.has_wheels(target_of(here)):
        pytest.skip("this machine is of another kind")
    assert Runtime.choose(here, NODE, cache, wait_for_gpu=True).backend == "cuda"
    older = replace(here, cuda=(12, 4))
    waiting = Runtime.choose(older, NODE, cache, wait_for_gpu=True)
    assert waiting.backend == "cpu"
    assert "`nvcc`" in waiting.notice
    assert building.missing_tool("cuda", target_of(older)) == "nvcc"
    with_compilers(tmp_path, "nvcc")
    assert Runtime.choose(older, NODE, cache, wait_for_gpu=True).backend == "cuda"


def test_a_driver_that_is_too_old_is_named_and_no_build_is_advised(cache: WheelCache) -> None:
    found = Runtime.choose(probe(L4, cuda=(11, 4)), NODE, cache, wait_for_gpu=True)
    assert found.backend == "cpu"
    assert "install driver 525 or newer" in found.notice
    assert "wheels build" not in found.notice


@pytest.mark.skipif(CC is None, reason="needs cc")
def test_a_wheel_serves_the_nodes_whose_gpus_it_has_code_for(
    cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    code = library(tmp_path, container("sm_90"), needs="libcudart.so.13").getvalue()
    cache.add_wheel(make_wheel(tmp_path / "made", {"llama_cpp/lib/libggml-cuda.so": code}), "cuda")
    libc = _libc_here()
    assert Runtime.choose(probe(H100, libc=libc), NODE, cache, KEEPER).backend == "cuda"
    assert Runtime.choose(probe(L4, libc=libc), NODE, cache, KEEPER).backend == "cpu"
    assert Runtime.choose(probe(H100, L4, libc=libc), NODE, cache, KEEPER).backend == "cpu"
    assert Runtime.choose(probe(H100, libc=libc, cuda=(12, 8)), NODE, cache, KEEPER).backend == "cpu"
    wheel = cache.find_llama(target_of(probe(H100, libc=libc)), "cuda")
    assert wheel is not None
    assert cache.cuda_line(wheel.sha256) == 13
    assert cache.cuda_line("0" * 64) == 0


def test_the_key_of_a_runtime_tells_the_nodes_own_gpus_apart_and_no_others(cache: WheelCache) -> None:
    explicit = replace(NODE, backend="cuda")
    keys = [Runtime.choose(probe(*gpus), explicit, cache).key for gpus in ((L4,), (L4, L4), (H100,), (L4, H100))]
    assert keys[0] == keys[1]
    assert len({*keys}) == 3
    assert (
        Runtime.choose(probe(L4), replace(NODE, backend="cpu"), cache).key == Runtime.choose(probe(), NODE, cache).key
    )


def test_the_key_of_a_runtime_for_cuda_tells_what_is_brought_along(cache: WheelCache) -> None:
    """A node that loses its own libraries gets another runtime. The CPU's has nothing to do with them."""
    cuda, cpu = (replace(NODE, backend=backend) for backend in ("cuda", "cpu"))
    bare, own = probe(L4), probe(L4, cudart=frozenset({12, 13}))
    assert Runtime.choose(bare, cuda, cache).key != Runtime.choose(own, cuda, cache).key
    assert Runtime.choose(bare, cpu, cache).key == Runtime.choose(own, cpu, cache).key


def test_a_node_without_a_compiler_waits_for_the_build_of_another(cache: WheelCache) -> None:
    """This machine has none either."""
    builder = Node("big", host="192.0.2.7")
    waiting = replace(NODE, builds_from=("big",))
    builders = Builders.of(waiting, {"gpu1": waiting, "big": builder})
    assert Runtime.choose(probe(L4), waiting, cache, KEEPER, wait_for_gpu=True).backend == "cpu"
    assert Runtime.choose(probe(L4), waiting, cache, builders, wait_for_gpu=True).backend == "cuda"


def test_the_toolkit_runs_where_it_compiles_whatever_the_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: "/usr/bin/c++" if name == "c++" else None)
    node = target_of(probe(L4))
    for glibc, missing in (((2, 27), None), ((2, 17), "nvcc")):
        here = replace(node, libc_version=glibc, gpus=frozenset(), cuda=())
        monkeypatch.setattr(Target, "here", lambda here=here: here)
        assert building.missing_tool("cuda", node) == missing


def test_amds_gpus_are_named_as_idle_too(cache: WheelCache) -> None:
    found = Runtime.choose(probe(Gpu("amd", "Radeon"), graphics=AMD, cuda=()), NODE, cache)
    assert (found.backend, found.better) == ("cpu", ("vulkan",))
    assert "Radeon" in found.notice
    assert "llama.cpp for vulkan" in found.notice


def _libc_here() -> str:
    here = Target.here()
    if here.libc != "glibc" or here.machine != "x86_64":
        pytest.skip("of another kind than the node")
    return f"glibc {'.'.join(map(str, here.libc_version))}"
