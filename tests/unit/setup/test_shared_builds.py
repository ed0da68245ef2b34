"""One build of llama.cpp for CUDA serves all nodes that can share it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbee.inventory import Node
from rbee.node.probe import Gpu, Probe
from rbee.setup.base import cuda
from rbee.setup.base.platforms import Target
from rbee.setup.shared_builds import SharedBuild, plan, said
from rbee.setup.wheels.cache import WheelCache

ADA, HOPPER, PASCAL = (8, 9), (9, 0), (6, 1)
NEW = Target(
    "Linux", "x86_64", "glibc", (2, 36), (3, 11), frozenset({"avx", "fma"}), cuda=(13, 0), gpus=frozenset({ADA})
)
OLD = replace(NEW, libc_version=(2, 31), cpu=frozenset({"avx"}), cuda=(13, 1), gpus=frozenset({HOPPER}))


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({}, False),
        ({"libc_version": (2, 31), "gpus": frozenset({HOPPER})}, False),
        ({"python": (3, 12)}, False),
        ({"machine": "aarch64"}, True),
        ({"libc": "musl"}, True),
        ({"cuda": (12, 4)}, True),
        ({"gpus": frozenset({PASCAL})}, True),
    ],
)
def test_what_shares_a_build(change: dict[str, object], apart: bool) -> None:
    found = cuda.groups({"a": NEW, "b": replace(NEW, **change)})  # type: ignore[arg-type]
    assert sorted(map(sorted, found)) == ([["a"], ["b"]] if apart else [["a", "b"]])


def test_the_oldest_c_library_comes_first() -> None:
    assert cuda.groups({"a": NEW, "b": OLD}) == [["b", "a"]]


def test_a_build_for_both_has_code_for_both_and_runs_with_the_older_of_each() -> None:
    both = cuda.joined(NEW, [OLD])
    assert (both.libc_version, both.cuda, both.cpu) == ((2, 31), (13, 0), {"avx"})
    assert "-DCMAKE_CUDA_ARCHITECTURES=89-real;90-real" in cuda.flags([both])
    assert cuda.line(both) == cuda.line(NEW) == cuda.line(OLD)
    assert cuda.joined(NEW, []) == NEW


def probe(gpu: tuple[int, int], glibc: str = "2.36", driver: tuple[int, int] = (13, 0)) -> Probe:
    return Probe(
        system="Linux",
        machine="x86_64",
        libc=f"glibc {glibc}",
        home="/home/bee/.rbee/node",
        python="/usr/bin/python3",
        python_version=(3, 11, 2),
        gpus=(Gpu(name="a GPU", vendor="nvidia", compute=gpu),),
        cuda=driver,
    )


def nodes(**builds_from: tuple[str, ...]) -> dict[str, Node]:
    hosts = {name: f"192.0.2.{n}" for n, name in enumerate(("a", "b", "c"), 1)}
    return {
        name: Node(name, host=host, backend="cuda", builds_from=builds_from.get(name, ()))
        for name, host in hosts.items()
    }


PROBES = {"a": probe(ADA), "b": probe(HOPPER, "2.31"), "c": probe(PASCAL, driver=(12, 4))}


@pytest.mark.parametrize(
    ("here", "builds_from", "wanted"),
    [
        (True, {}, [("b", ["a"]), ("c", [])]),
        (False, {}, [("b", []), ("a", []), ("c", [])]),  # b builds, and a does not run that
        (False, {"a": ("b",)}, [("b", ["a"]), ("c", [])]),
    ],
)
def test_the_builds_that_a_fleet_wants(
    here: bool,
    builds_from: dict[str, tuple[str, ...]],
    wanted: list[tuple[str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WheelCache, "can_get", lambda *_: here)
    fleet = nodes(**builds_from)
    builds = plan([(fleet[name], found) for name, found in PROBES.items()], fleet, WheelCache(tmp_path, tmp_path))
    assert [(build.head, list(build.along)) for build in builds] == wanted


def test_what_is_in_the_cache_is_not_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_: WheelCache, target: Target, *__: object) -> object:
        return object() if ADA in target.gpus else None

    monkeypatch.setattr(WheelCache, "find_llama", find)
    monkeypatch.setattr(WheelCache, "can_get", lambda *_: True)
    fleet = nodes()
    builds = plan([(fleet[name], PROBES[name]) for name in ("a", "b")], fleet, WheelCache(tmp_path, tmp_path))
    assert [(build.head, list(build.along)) for build in builds] == [("b", [])]


def test_what_is_told() -> None:
    shared, alone = SharedBuild("b", OLD, {"a": NEW}), SharedBuild("c", replace(NEW, machine="aarch64"), {})
    assert said([shared]) == "one llama.cpp for CUDA serves b, a (x86_64, glibc, CUDA 13: 89-real;90-real)"
    assert said([shared, alone]).startswith(
        "2 builds for CUDA: b, a (x86_64, glibc, CUDA 13: 89-real;90-real); c (aarch64, glibc, CUDA 13: 89-real); what"
    )
    assert said([alone]) == said([]) == ""
