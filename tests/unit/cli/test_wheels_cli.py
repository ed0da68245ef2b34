"""`rbee wheels`, as a user types it: over a cache of tiny wheels, with an index in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbee.base.errors import ConnectError, NodeError
from rbee.base.files import LocalFile
from rbee.base.locks import held_at_once
from rbee.cli import main as cli
from rbee.context import Context
from rbee.fleet import wheels
from rbee.inventory import Node
from rbee.node.probe import Gpu, Probe
from rbee.node.session import PerNode
from rbee.registry import NodeFacts, Registry
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import Builders
from rbee.setup.supplies import Gathered
from rbee.setup.wheels.cache import Origin, WheelCache
from rbee_remote.protocol import ErrorCode
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_source, write_wheel

PAGE = Path(__file__).parents[3] / "docs/how-to/build-once.md"
HERE = Target.here()
TAG = f"py3-none-linux_{HERE.machine}"
INVENTORY = """
[nodes.gpu1]
host = "192.0.2.1"
[nodes.gpu2]
host = "192.0.2.2"
builds_from = ["gpu1"]
[nodes.mac]
host = "192.0.2.3"
"""
GPU1 = Node("gpu1", host="192.0.2.1")

Run = Any


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageIndex:
    index = PackageIndex(tmp_path, monkeypatch)
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b""}, tag=f"cp311-cp311-{tag()}"))
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=TAG))
    return index


def tag() -> str:
    return f"manylinux_2_17_{HERE.machine}"


@pytest.fixture
def cache(tmp_path: Path, index: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> WheelCache:
    """With one wheel, as this machine built it."""
    monkeypatch.setenv("RBEE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RBEE_WHEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RBEE_INVENTORY", raising=False)
    cache = WheelCache(tmp_path / "cache", tmp_path / "log")
    cache.add_wheel(write_wheel(tmp_path / "built", "llama_cpp_python", {"llama_cpp.py": b""}, tag=TAG), "cpu")
    return cache


@pytest.fixture
def inventory(tmp_path: Path, cache: WheelCache) -> Path:
    """Of gpu1 and gpu2 the registry knows what they are; gpu1 has built something."""
    del cache
    path = tmp_path / "nodes.toml"
    path.write_text(INVENTORY)
    (tmp_path / "home").mkdir(exist_ok=True, mode=0o700)
    with Registry.open(tmp_path / "home/workers.db") as registry:
        for name in ("gpu1", "gpu2"):
            facts = NodeFacts(name, "forward", "/h", "/r", "/p", "/c", "/s", platform=HERE.text, backend="cuda")
            registry.remember_node(facts)
    return path


def add_build_of(cache: WheelCache, tmp_path: Path, node: Node) -> Path:
    wheel = write_wheel(tmp_path / node.name, "llama_cpp_python", {"llama_cpp.py": b"theirs"}, tag=TAG)
    return cache.add_wheel(wheel, "cuda", origin=Origin(Builders.of(node, {}).own)).path.parent


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["wheels", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def last(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


# --- list ---


def test_the_list_says_who_built_what_and_who_takes_it(
    inventory: Path, cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_build_of(cache, tmp_path, GPU1)
    status, out, err = run(capsys, "list", "-i", str(inventory))
    assert status == 0
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert [row[0] for row in rows] == ["WHAT", "llama.cpp cpu 1.0", "llama.cpp cuda 1.0"]
    assert [row[2] for row in rows] == ["BY", "here", "gpu1"]
    assert [row[-1] for row in rows] == ["FOR", "local", "gpu1, gpu2"]
    assert err == "not known what fits: mac (no command has used them so far)\n"
    status, out, _ = run(capsys, "list", "--json", "-i", str(inventory))
    data = json.loads(out)
    assert (data["unknown_nodes"], data["cache"]) == (["mac"], str(cache.root))
    assert [(item["built_by"], item["nodes"], item["state"]) for item in data["items"]] == [
        (None, ["local"], "good"),
        ("gpu1 192.0.2.1", ["gpu1", "gpu2"], "good"),
    ]


def test_several_nodes_are_prepared_at_once_and_share_a_build_for_cuda(
    inventory: Path, cache: WheelCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the nodes say and what is built is doubled."""
    compute, asked = {"gpu1": (8, 9), "gpu2": (9, 0)}, []

    async def seen(_: Context, nodes: Sequence[Node], _ask: object) -> list[PerNode[Probe]]:
        return [PerNode(node, gpu_probe(compute[node.name])) for node in nodes]

    async def made(_: Context, node: Node, along: Sequence[Target] = ()) -> Gathered:
        asked.append((node.name, [sorted(target.gpus) for target in along]))
        (wheel,) = cache.root.glob("llama/*/*.whl")
        return Gathered(HERE, "cuda", LocalFile.of(wheel), cache.root, cache.root / "uv", was_there=bool(asked[1:]))

    monkeypatch.setattr(wheels, "on_each", seen)
    monkeypatch.setattr(wheels, "build", made)
    monkeypatch.setattr(WheelCache, "can_get", lambda *_: True)
    words = ("build", "--backend", "cuda", "-i", str(inventory), "--for", "gpu2", "--for", "gpu1", "--for", "gpu2")
    status, out, err = run(capsys, *words, "--json")
    assert (status, asked) == (0, [("gpu1", [[(9, 0)]]), ("gpu2", [])]), "gpu1 does not run what gpu2 builds"
    assert [(each["node"], each["was_there"]) for each in json.loads(out.splitlines()[-1])["nodes"]] == [
        ("gpu2", True),
        ("gpu1", False),
    ]
    assert "one llama.cpp for CUDA serves gpu1, gpu2" in out + err


def test_a_node_that_fails_keeps_no_other_from_its_own(
    inventory: Path, cache: WheelCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpu1 fails as it is built for; a node that does not answer is told of, too."""
    silent: set[str] = set()

    async def seen(_: Context, nodes: Sequence[Node], _ask: object) -> list[PerNode[Probe]]:
        gone = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "gpu2 cannot be reached")
        return [
            PerNode(node, None, gone) if node.name in silent else PerNode(node, gpu_probe((8, 9))) for node in nodes
        ]

    async def made(_: Context, node: Node, _along: Sequence[Target] = ()) -> Gathered:
        if node.name == "gpu1":
            raise NodeError(ErrorCode.BOOTSTRAP_FAILED, "llama.cpp did not build here")
        (wheel,) = cache.root.glob("llama/*/*.whl")
        return Gathered(HERE, "cuda", LocalFile.of(wheel), cache.root, cache.root / "uv", was_there=False)

    monkeypatch.setattr(wheels, "on_each", seen)
    monkeypatch.setattr(wheels, "build", made)
    monkeypatch.setattr(WheelCache, "can_get", lambda *_: True)
    words = ("build", "--backend", "cuda", "-i", str(inventory), "--for", "gpu1", "--for", "gpu2")
    status, out, err = run(capsys, *words)
    assert status != 0
    assert "no llama.cpp for gpu1: llama.cpp did not build here" in err
    assert "llama.cpp for gpu2 (cuda" in err
    assert "1 of 2 nodes failed" in err
    silent.add("gpu2")
    status, out, _ = run(capsys, *words, "--json")
    (nodes,) = (said["nodes"] for line in out.splitlines() if "nodes" in (said := json.loads(line)))
    assert (status != 0, [each["error"]["code"] for each in nodes]) == (
        True,
        ["BOOTSTRAP_FAILED", "CONNECTION_TIMEOUT"],
    )


def gpu_probe(compute: tuple[int, int]) -> Probe:
    gpus = (Gpu(name="a GPU", vendor="nvidia", compute=compute),)
    libc = "glibc 2.36"
    return Probe(system="Linux", machine="x86_64", libc=libc, home="/home/bee/.rbee/node", gpus=gpus, cuda=(13, 0))


def test_the_list_of_an_empty_cache(
    cache: WheelCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBEE_WHEEL_CACHE", f"{cache.root}-none")
    assert run(capsys, "list") == (0, "", f"{cache.root}-none has nothing so far; `rbee wheels build` makes it\n")
    assert not Path(f"{cache.root}-none").exists()


def test_what_is_damaged_is_told_and_pruned_and_the_rest_goes_on(
    cache: WheelCache, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = cache.root / "llama/cpu-broken"
    damaged.mkdir()
    (damaged / "wheel.json").write_text("{")
    status, out, err = run(capsys, "list")
    assert (status, len(out.splitlines())) == (0, 3)
    assert f"damaged: {damaged}: " in err
    status, out, err = run(capsys, "build")
    assert status == 0
    assert f"{damaged}" in err, "told, and passed over"
    status, out, err = run(capsys, "prune")
    assert (status, err.splitlines()[-1].split(",")[0]) == (0, "removed 1")
    assert out.startswith(f"here: removed llama.cpp {damaged} (")
    assert "damaged" not in run(capsys, "list")[2]


# --- build ---


def test_what_is_there_is_not_built_again_and_a_bootstrap_finds_all(
    cache: WheelCache, index: PackageIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "build")
    (wheel,) = cache.root.glob("llama/*/*.whl")
    assert (status, out) == (0, "")
    assert err.splitlines()[-1].endswith(f"is there already: {wheel}")
    index.vanish()
    data = last(run(capsys, "build", "--json")[1])
    assert (data["was_there"], data["wheel"], data["node"]) == (True, str(wheel), "local")
    assert list(Path(data["packages"]).glob("*.whl"))
    assert os.access(data["uv"], os.X_OK)


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no compiler to be found")
def test_what_is_not_there_is_built_with_its_steps(
    cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBEE_WHEEL_CACHE", str(tmp_path / "other"))
    status, out, _ = run(capsys, "build", "--backend", "cpu", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert (status, events[-1]["was_there"], events[-1]["backend"]) == (0, False, "cpu")
    assert [event["done"] for event in events if event.get("key") == "build" and event["total"]] == [1.0, 2.0, 3.0]
    assert Path(events[-1]["wheel"]).is_relative_to(tmp_path / "other/llama")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("build", "--backend", "tpu"), "--backend: 'tpu' is none of cpu, cuda"),
        (("build", "--for", "gpu9"), "no node 'gpu9'"),
        (("push", "https://wheels.example/llama"), "is an address, and wheels are pushed to a folder"),
        (("push", "gpu1:"), "'gpu1:' names no folder"),
        (("push", "x", "--built-by", "gpu9"), "there is nothing in the cache that gpu9 has built"),
        (("push", "x", "--sign", "none"), "is not a key that can be used"),
    ],
)
def test_usage_errors(
    cache: WheelCache, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "x").exists()


# --- push ---


def test_a_push_prints_what_an_inventory_needs(
    cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "push", str(tmp_path / "public"))
    assert status == 0
    (wheel,) = cache.root.glob("llama/*/wheel.json")
    (entry,) = tomllib.loads(out)["wheel_indexes"]
    assert entry == {
        "backend": "cpu",
        "url": (tmp_path / "public").as_uri(),
        "sha256": [json.loads(wheel.read_text())["sha256"]],
    }
    assert err.splitlines()[-1] == f"{tmp_path / 'public'}: 1 added"
    data = last(run(capsys, "push", str(tmp_path / "public"), "--json")[1])
    assert (data["added"], len(data["unchanged"]), data["wheel_indexes"]) == ([], 1, [entry])


def test_what_a_node_built_is_pushed_where_that_is_said(
    inventory: Path, cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_build_of(cache, tmp_path, GPU1)
    words = ("push", str(tmp_path / "public"), "-i", str(inventory))
    status, out, err = run(capsys, *words)
    assert (status, [entry["backend"] for entry in tomllib.loads(out)["wheel_indexes"]]) == (0, ["cpu"])
    assert "what gpu1 built or vouches for is not pushed; --built-by gpu1 does" in err
    status, out, _ = run(capsys, *words, "--built-by", "gpu1")
    assert (status, [entry["backend"] for entry in tomllib.loads(out)["wheel_indexes"]]) == (0, ["cpu", "cuda"])


def test_a_wheel_that_was_changed_is_not_pushed(
    cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (wheel,) = cache.root.glob("llama/*/*.whl")
    wheel.write_bytes(b"other")
    status, _, err = run(capsys, "push", str(tmp_path / "public"))
    assert status == 2
    assert "was changed after it was made" in err
    assert not (tmp_path / "public").exists()


def test_an_empty_cache_has_nothing_to_push(
    cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(cache.root)
    status, _, err = run(capsys, "push", str(tmp_path / "public"))
    assert status == 2
    assert "has no llama.cpp to push\nhint: `rbee wheels build` makes one" in err


# --- prune ---


def test_a_dry_run_changes_nothing(cache: WheelCache, capsys: pytest.CaptureFixture[str]) -> None:
    (cache.root / "base-0123456789abcdef").mkdir()
    before = sorted(cache.root.rglob("*"))
    status, out, err = run(capsys, "prune", "--dry-run")
    assert (status, out.startswith("here: would remove packages "), err.startswith("would remove 1")) == (0, True, True)
    assert sorted(cache.root.rglob("*")) == before
    assert json.loads(run(capsys, "prune", "--dry-run", "--json")[1])["actions"][0]["kind"] == "packages"


def test_there_may_be_nothing_to_remove(cache: WheelCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prune") == (0, "", "nothing to remove\n")


def test_nothing_goes_while_somebody_builds(cache: WheelCache, capsys: pytest.CaptureFixture[str]) -> None:
    old = cache.root / "base-0123456789abcdef"
    old.mkdir()
    with held_at_once(cache.root / "build.lock"):
        status, out, err = run(capsys, "prune")
    assert (status, out, err) == (0, "", "another rbee builds llama.cpp; nothing is removed meanwhile\n")
    assert old.is_dir()


# --- the page ---


def steps() -> Iterator[str]:
    """The commands of the page's CI job."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for job in yaml.safe_load(block)["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="there is no ssh-keygen")
def test_the_job_of_the_page_makes_a_signed_index(
    cache: WheelCache, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own lines, but for what brings rbee and the key there."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "wheels-key"], check=True)
    lines = [line.strip() for step in steps() for line in step.splitlines() if line.strip().startswith("rbee ")]
    assert [line.split()[2] for line in lines] == ["prune", "build", "push"]
    for line in lines:
        assert cli.main(line.split()[1:]) == 0, line
    (entry,) = tomllib.loads(capsys.readouterr().out)["wheel_indexes"]
    assert entry["key"] == " ".join(Path("wheels-key.pub").read_text().split()[:2])
    assert {path.name for path in (tmp_path / "public").iterdir()} > {"SHA256SUMS", "SHA256SUMS.sig", "cpu"}
