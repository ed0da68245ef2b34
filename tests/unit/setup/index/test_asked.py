"""Indexes of prebuilt wheels: which are asked, what they may give to whom, and that none can spoil or delay a build."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import psutil
import pytest

from rbee.base.errors import ConfigError, NodeError, UsageError
from rbee.base.events import Event, Notice
from rbee.fleet.wheels import choose
from rbee.inventory import Node, WheelIndex
from rbee.setup.base import requirements
from rbee.setup.base.cuda import Code
from rbee.setup.base.platforms import Target
from rbee.setup.base.requirements_file import Link, Reader
from rbee.setup.index import asked as wheel_index
from rbee.setup.index import fetch as wheel_fetch
from rbee.setup.index import files as index_files
from rbee.setup.index.asked import OFFICIAL, folders, indexes
from rbee.setup.index.builders import KEEPER, OFFICIAL_URL, Builders
from rbee.setup.wheels import building
from rbee.setup.wheels.cache import WheelCache
from rbee.setup.wheels.llama_wheel import LlamaWheel
from tests.tls import server_context
from tests.unit.setup.cuda_library import CC, container, library
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_source
from tests.unit.setup.wheel_server import (
    NAME,
    PAGE,
    TAG,
    VERSION,
    WheelServer,
    body,
    endless,
    make_wheel,
    redirect,
    serving,
    status,
)

HERE = Target.here()
GPU1 = Node("gpu1", host="192.0.2.1", host_key="SHA256:one", wheel_index="off")
LOCAL = Node("local", wheel_index="off")
WRONG = "0" * 64


@pytest.fixture(autouse=True)
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageIndex:
    """Of the locked version there is a source that builds in a moment; indexes are those of each test."""
    packages = PackageIndex(tmp_path, monkeypatch)
    packages.lock(requirements.LLAMA, write_source(packages.folder, "llama_cpp_python", version=VERSION, tag=TAG))
    monkeypatch.delenv("RBEE_WHEEL_INDEX")
    return packages


@pytest.fixture
def server() -> Iterator[WheelServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"))


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def asking(*asked: WheelIndex, node: Node = LOCAL) -> Builders:
    node = replace(node, wheel_indexes=asked)
    return Builders.of(node, {node.name: node})


async def fetched(cache: WheelCache, builders: Builders, target: Target = HERE) -> tuple[Path | None, str]:
    """The wheel in the cache, and all that was said."""
    events: list[Event] = []
    found = await cache.from_indexes(target, "cpu", events.append, builders)
    said = [event.text for event in events if isinstance(event, Notice)]
    return found.path if found else None, "\n".join(said)


# --- what they may give to whom ---------------------------------------------------------------------------------


async def test_with_its_hash_a_wheel_is_for_the_machines_that_name_it(
    cache: WheelCache, server: WheelServer, wheel: Path
) -> None:
    server.offer(wheel)
    builders = asking(WheelIndex(server.url, "cpu", (WRONG, sha256_of(wheel))))
    found, said = await fetched(cache, builders)
    assert found
    assert "prebuilt one of" in said
    assert cache.find_llama(HERE, "cpu", builders)
    assert await cache.llama_wheel(HERE, "cpu", lambda _: None, builders=builders) == cache.find_llama(
        HERE, "cpu", builders
    )
    for other in (KEEPER, asking(), asking(WheelIndex(server.url, "cpu", (WRONG,)))):
        assert cache.find_llama(HERE, "cpu", other) is None
    assert cache.built_elsewhere(HERE, "cpu") == "", "a hash is no name that builds_from could have"


async def test_a_hash_in_the_variable_counts_on_every_machine(
    cache: WheelCache, server: WheelServer, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.offer(wheel)
    monkeypatch.setenv("RBEE_WHEEL_INDEX", f"{server.url}#sha256={WRONG},sha256={sha256_of(wheel)}")
    assert cache.may_get(HERE, "cpu")
    fetched_one = await cache.llama_wheel(HERE, "cpu", lambda _: None)
    assert fetched_one == cache.find_llama(HERE, "cpu", KEEPER) == cache.find_llama(HERE, "cpu", asking())
    assert cache.is_prebuilt(fetched_one.sha256), "one that does not start on a node has another one built"


async def test_a_hash_in_the_variable_counts_as_long_as_it_is_set(
    cache: WheelCache, server: WheelServer, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not become what this machine built, which every node runs and `rbee wheels push` signs."""
    server.offer(wheel)
    monkeypatch.setenv("RBEE_WHEEL_INDEX", f"{server.url}#sha256={sha256_of(wheel)}")
    found = await cache.llama_wheel(HERE, "cpu", lambda _: None)
    for unset in ("off", f"{server.url}#sha256={WRONG}"):
        monkeypatch.setenv("RBEE_WHEEL_INDEX", unset)
        assert cache.find_llama(HERE, "cpu", KEEPER) is None
    with pytest.raises(UsageError, match="has no llama"):
        choose(cache.root, [])
    (offer,) = choose(cache.root, [f"sha256:{sha256_of(wheel)}"]).offers
    assert offer.file == found


async def test_without_hash_and_key_its_wheels_are_for_nodes_that_name_it(
    cache: WheelCache, server: WheelServer, wheel: Path
) -> None:
    server.offer(wheel, sha256="")
    index = WheelIndex(server.url, "cpu")
    builders = asking(index, node=replace(GPU1, builds_from=(f"{server.url}/",)))
    found, _ = await fetched(cache, builders)
    assert found
    assert cache.find_llama(HERE, "cpu", builders)
    for other in (KEEPER, asking(index), asking(index, node=replace(LOCAL, builds_from=(server.url,)))):
        assert cache.find_llama(HERE, "cpu", other) is None
        assert (await fetched(cache, other))[0] is None


@pytest.mark.parametrize("node", [GPU1, LOCAL])
async def test_a_node_that_does_not_name_it_is_told_how(cache: WheelCache, node: Node) -> None:
    builders = asking(WheelIndex("https://me:secret@w.example/llama", "cpu"), node=node)
    found, said = await fetched(cache, builders)
    assert found is None
    assert said.startswith("https://w.example/llama is not used for llama.cpp: nothing vouches for it")
    elsewhere = cache.built_elsewhere(HERE, "cpu", builders)
    alpine = replace(HERE, libc="musl", libc_version=(1, 2))
    assert 'builds_from = ["https://w.example/llama"]' in building.no_way(alpine, "cpu", elsewhere).hint


# --- signatures -------------------------------------------------------------------------------------------------


class Signed:
    """An index in a folder, as `rbee wheels push` writes one, and the key that it is signed with."""

    def __init__(self, root: Path, wheel: Path) -> None:
        self.root = root / "signed"
        self.wheel = self.root / PAGE / wheel.name
        self.wheel.parent.mkdir(parents=True)
        self.wheel.write_bytes(wheel.read_bytes())
        (self.wheel.parent / "index.html").write_text(f'<a href="{NAME}#sha256={sha256_of(wheel)}">{NAME}</a>')
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "key")], check=True)
        self.key = " ".join((root / "key.pub").read_text().split()[:2])
        self.sign(f"{sha256_of(wheel)}  {PAGE}{NAME}\n")

    def sign(self, sums: str, namespace: str = "rbee-wheels") -> None:
        (self.root / "SHA256SUMS").write_text(sums)
        (self.root / "SHA256SUMS.sig").unlink(missing_ok=True)
        words = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(self.root.with_name("key"))]
        subprocess.run([*words, str(self.root / "SHA256SUMS")], check=True, capture_output=True)

    @property
    def index(self) -> WheelIndex:
        return WheelIndex(self.root.as_uri(), "cpu", key=self.key)


@pytest.fixture
def signed(tmp_path: Path, wheel: Path) -> Signed:
    return Signed(tmp_path, wheel)


async def test_what_the_key_has_signed_runs_where_the_inventory_has_the_key(cache: WheelCache, signed: Signed) -> None:
    builders = asking(signed.index)
    found, said = await fetched(cache, builders)
    assert found, said
    assert cache.find_llama(HERE, "cpu", builders)
    assert cache.find_llama(HERE, "cpu", asking()) is None, "who takes the key out of the inventory takes it back"


def _another_key(signed: Signed) -> None:
    signed.key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


def _another_use(signed: Signed) -> None:
    signed.sign((signed.root / "SHA256SUMS").read_text(), "file")


def _a_changed_list(signed: Signed) -> None:
    with (signed.root / "SHA256SUMS").open("a") as file:
        file.write(f"{WRONG}  other\n")


def _another_backend(signed: Signed) -> None:
    signed.sign(f"{sha256_of(signed.wheel)}  cuda/llama-cpp-python/{NAME}\n")


def _another_version(signed: Signed) -> None:
    signed.sign(f"{sha256_of(signed.wheel)}  {PAGE}{NAME.replace(VERSION, '0.3.1')}\n")


def _a_changed_wheel(signed: Signed) -> None:
    with signed.wheel.open("ab") as file:
        file.write(b"x")


def _no_signature(signed: Signed) -> None:
    (signed.root / "SHA256SUMS.sig").unlink()


def _a_signature_of_nonsense(signed: Signed) -> None:
    (signed.root / "SHA256SUMS.sig").write_bytes(os.urandom(300))


def _a_huge_list(signed: Signed) -> None:
    with (signed.root / "SHA256SUMS").open("ab") as file:
        file.truncate(2**21)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_another_key, "not signed with the key"),
        (_another_use, "not signed with the key"),
        (_a_changed_list, "not signed with the key"),
        (_another_backend, "does not name it"),
        (_another_version, "does not name it"),
        (_a_changed_wheel, "its SHA-256 is"),
        (_no_signature, "SHA256SUMS and its signature"),
        (_a_signature_of_nonsense, "not signed with the key"),
        (_a_huge_list, "too large"),
    ],
)
async def test_what_is_not_signed_so_is_refused(
    cache: WheelCache, signed: Signed, spoil: Callable[[Signed], None], why: str
) -> None:
    spoil(signed)
    found, said = await fetched(cache, asking(signed.index))
    assert found is None
    assert why in said
    assert not list(cache.root.glob("llama/*"))


# --- indexes that are slow, wrong, old or hostile -----------------------------------------------------------------


def _hangs(server: WheelServer, _: Path) -> None:
    server.paths[f"/{PAGE}"] = server.hang


def _hangs_with_the_wheel(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel)
    server.paths[f"/{PAGE}{NAME}"] = server.hang


def _trickles(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel)
    server.paths[f"/{PAGE}{NAME}"] = server.stalls_after(3 * 2**20)


@pytest.mark.parametrize(
    ("behave", "first_s", "why"),
    [
        (_hangs, 0.5, "nothing came for"),
        (_hangs_with_the_wheel, 0.5, "nothing came for"),
        (_trickles, 60.0, "it gives less than 1 MiB in"),
    ],
)
async def test_one_that_is_too_slow_is_left(
    cache: WheelCache,
    server: WheelServer,
    wheel: Path,
    behave: Callable[[WheelServer, Path], None],
    first_s: float,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wheel_index, "FIRST_S", first_s)
    monkeypatch.setattr(wheel_index, "STALL_S", 0.5)
    behave(server, wheel)
    found, said = await fetched(cache, asking(WheelIndex(server.url, "cpu", (sha256_of(wheel),))))
    assert found is None
    assert why in said
    assert not list(cache.root.glob(".staging-*"))


async def test_one_that_goes_on_and_on_is_left(
    cache: WheelCache, server: WheelServer, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_index, "_ALL_S", {"cpu": 1.0})
    _trickles(server, wheel)
    found, said = await fetched(cache, asking(WheelIndex(server.url, "cpu", (sha256_of(wheel),))))
    assert found is None
    assert "it takes longer than" in said


def test_a_name_of_many_tags_is_not_read() -> None:
    """Each of one part counts with each of the others: these would be a thousand million."""
    parts = [".".join(f"{kind}{number}" for number in range(1000)) for kind in "abc"]
    link = Link(f"https://w.example/llama_cpp_python-{VERSION}-{'-'.join(parts)}.whl", "")
    request = wheel_fetch.Request("", (), VERSION, [f"linux_{HERE.machine}"], (3, 12), (), "", 1, "")
    assert not list(wheel_fetch._fitting([link], request))


@pytest.mark.parametrize(
    ("cuda", "gpu", "fitting"),
    [
        ((13, 0), (7, 5), ["unknown", "turing"]),
        ((13, 0), (8, 9), ["unknown", "ada"]),
        ((13, 0), (9, 0), ["unknown"]),
        ((12, 4), (8, 9), ["unknown"]),
        ((), (), ["unknown", "turing", "ada"]),
    ],
)
def test_of_builds_for_several_gpus_a_node_takes_its_own(
    cuda: tuple[int, ...], gpu: tuple[int, ...], fitting: list[str]
) -> None:
    codes = {"unknown": None, "turing": Code.read("13 sass 7.5 ptx by"), "ada": Code.read("13 sass 8.9 ptx by")}
    name = f"llama_cpp_python-{VERSION}-py3-none-linux_x86_64.whl"
    names = {index_files.wheel_path("cuda", name, "glibc", (2, 17), code): what for what, code in codes.items()}
    assert len(names) == len(codes)
    links = [Link(f"https://w.example/{name}", "") for name in names]
    platforms, gpus = ["manylinux_2_17_x86_64"], [list(gpu)] if gpu else []
    request = wheel_fetch.Request("", (), VERSION, platforms, (3, 12), (), "", 1, "", list(cuda), gpus)
    assert [names[f"cuda/llama-cpp-python/{link.name}"] for link in wheel_fetch._fitting(links, request)] == fitting


def _fails(server: WheelServer, _: Path) -> None:
    server.paths[f"/{PAGE}"] = status(500)


def _wheel_fails(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel)
    server.paths[f"/{PAGE}{NAME}"] = status(503)


def _is_not_there(server: WheelServer, _: Path) -> None:
    """404."""


def _is_html_trash(server: WheelServer, _: Path) -> None:
    server.page("<a href='" + "<a \x00" * 1000)


def _is_old(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel, name=NAME.replace(VERSION, "0.3.1"))


def _has_another_machine(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel, name=NAME.replace(HERE.machine, "riscv64"))


def _turns_in_circles(server: WheelServer, _: Path) -> None:
    server.paths[f"/{PAGE}"] = redirect(f"{server.url}/b")
    server.paths["/b"] = redirect(f"{server.url}/{PAGE}")


def _leads_into_this_machine(server: WheelServer, wheel: Path) -> None:
    server.page(f'<a href="{wheel.as_uri()}">{NAME}</a>')


def _redirects_into_this_machine(server: WheelServer, wheel: Path) -> None:
    server.paths[f"/{PAGE}"] = redirect(wheel.parent.as_uri())


def _redirects_to_ftp(server: WheelServer, _: Path) -> None:
    server.paths[f"/{PAGE}"] = redirect(f"ftp://127.0.0.1:1/{PAGE}")


def _never_ends(server: WheelServer, _: Path) -> None:
    server.paths[f"/{PAGE}"] = endless


def _has_a_huge_wheel(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel, sha256="")
    server.paths[f"/{PAGE}{NAME}"] = endless


def _lies_about_the_hash(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel, sha256=WRONG)


def _has_something_else(server: WheelServer, wheel: Path) -> None:
    server.offer(wheel)
    server.paths[f"/{PAGE}{NAME}"] = body(b"PK\x03\x04 something else")


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (_fails, "HTTP Error 500"),
        (_wheel_fails, "HTTP Error 503"),
        (_is_not_there, "HTTP Error 404"),
        (_is_html_trash, f"it has no llama-cpp-python {VERSION}"),
        (_is_old, f"it has no llama-cpp-python {VERSION}"),
        (_has_another_machine, f"it has no llama-cpp-python {VERSION}"),
        (_turns_in_circles, "infinite loop"),
        (_leads_into_this_machine, f"it has no llama-cpp-python {VERSION}"),
        (_redirects_into_this_machine, "is not allowed"),
        (_redirects_to_ftp, "begins with ftp:, which is not allowed"),
        (_never_ends, "the page is too large"),
        (_has_a_huge_wheel, "it is larger than 9 MiB"),
        (_lies_about_the_hash, "its SHA-256 is"),
        (_has_something_else, "its SHA-256 is"),
    ],
)
async def test_one_that_is_wrong_is_passed_over_with_a_line(
    cache: WheelCache,
    server: WheelServer,
    wheel: Path,
    behave: Callable[[WheelServer, Path], None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wheel_index, "_LARGEST", {"cpu": 9 * 2**20})
    behave(server, wheel)
    found, said = await fetched(cache, asking(WheelIndex(server.url, "cpu", (sha256_of(wheel),))))
    assert found is None
    assert said.startswith(f"no llama.cpp for cpu from {server.url}: ")
    assert why in said
    assert "\n" not in said
    assert not list(cache.root.glob("llama/*"))
    assert not list(cache.root.glob(".staging-*"))


async def test_nobody_listens(cache: WheelCache, server: WheelServer) -> None:
    server.http.server_close()
    found, said = await fetched(cache, asking(WheelIndex(server.url, "cpu", (WRONG,))))
    assert found is None
    assert "refused" in said


async def test_the_next_one_is_asked_and_those_of_other_backends_are_not(
    cache: WheelCache, server: WheelServer, wheel: Path
) -> None:
    server.offer(wheel)
    good = WheelIndex(server.url, "cpu", (sha256_of(wheel),))
    with serving() as bad, serving() as cuda:
        found, said = await fetched(
            cache, asking(WheelIndex(cuda.url, "cuda", (WRONG,)), WheelIndex(bad.url, "cpu", (WRONG,)), good)
        )
        assert found
        assert bad.asked
        assert not cuda.asked
    assert said.startswith(f"no llama.cpp for cpu from {bad.url}: ")


async def test_then_it_is_built(cache: WheelCache, server: WheelServer, wheel: Path) -> None:
    """The wheel that the user's hash does not mean is not used, that is said, and llama.cpp is there all the same."""
    server.offer(wheel)
    events: list[Event] = []
    builders = asking(WheelIndex(server.url, "cpu", (WRONG,)))
    built = await cache.llama_wheel(HERE, "cpu", events.append, builders=builders)
    assert built == cache.find_llama(HERE, "cpu", KEEPER)
    assert [event.text for event in events if isinstance(event, Notice) and "not the locked one" in event.text]


async def test_where_nothing_can_build_that_is_the_error(
    cache: WheelCache, server: WheelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NodeError, match="has to be compiled once"):
        await cache.llama_wheel(HERE, "cpu", lambda _: None, builders=asking(WheelIndex(server.url, "cpu", (WRONG,))))


async def test_an_index_behind_tls_does_not_lead_out_of_it(
    cache: WheelCache, server: WheelServer, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trusted = server_context(tmp_path)
    monkeypatch.setenv("PIP_CERT", str(trusted))
    server.offer(wheel, sha256="")
    with serving() as secure:
        secure.http.socket = context.wrap_socket(secure.http.socket, server_side=True)
        url = secure.url.replace("http:", "https:")
        builders = asking(WheelIndex(url, "cpu"), node=replace(GPU1, builds_from=(url,)))
        secure.page(f'<a href="{server.url}/{PAGE}{NAME}">{NAME}</a>')
        assert "leads away from it" in (await fetched(cache, builders))[1]
        secure.page(f'<a href="{NAME}">{NAME}</a>')
        secure.paths[f"/{PAGE}{NAME}"] = redirect(f"{server.url}/{PAGE}{NAME}")
        assert "leads away from it" in (await fetched(cache, builders))[1]
        secure.offer(wheel, sha256="")
        assert (await fetched(cache, builders))[0]
    assert server.asked == []


async def test_no_other_index_can_take_its_place(
    cache: WheelCache, server: WheelServer, wheel: Path, locked: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own indexes may be asked for anything else; what is kept under an index's name comes from there."""
    (locked.folder / NAME).write_bytes(wheel.read_bytes())
    with serving() as other:
        other.offer(wheel)
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{other.url}/cpu")
        builders = asking(WheelIndex(server.url, "cpu"), node=replace(GPU1, builds_from=(server.url,)))
        assert (await fetched(cache, builders))[0] is None
        assert other.asked == []


# --- wheels that do not run there ---------------------------------------------------------------------------------


async def test_a_wheel_that_does_not_run_there_is_not_kept(
    cache: WheelCache, server: WheelServer, tmp_path: Path
) -> None:
    """tests/unit/setup/wheels/test_check.py has the reasons, one by one."""
    library = next(Path(psutil.__file__).parent.rglob("*.so")).read_bytes()
    wheel = make_wheel(tmp_path / "made", {"llama_cpp/lib/libllama.so": library})
    server.offer(wheel)
    found, said = await fetched(cache, asking(WheelIndex(server.url, "cpu", (sha256_of(wheel),))))
    assert found is None
    assert "its libraries lack" in said
    assert not list(cache.root.glob("llama/*"))


# --- which are asked ----------------------------------------------------------------------------------------------


def test_the_official_one_comes_last_and_can_be_turned_off() -> None:
    mine = WheelIndex("https://w.example", "cpu", (WRONG,))
    other = WheelIndex("https://w.example", "cuda", (WRONG,))
    for node in (Node("local"), Node("gpu1", host="192.0.2.1")):
        builders = asking(mine, other, node=node)
        assert indexes("cpu", HERE, builders, {}) == [mine, OFFICIAL]
        assert wheel_index.may_serve(OFFICIAL, builders)
        assert indexes("cpu", HERE, asking(mine, node=replace(node, wheel_index="off")), {}) == [mine]
        assert indexes("rocm", HERE, builders, {}) == []
        assert indexes("cpu", replace(HERE, system="Darwin", libc="macos"), builders, {}) == [mine]
        assert indexes("cpu", HERE, builders, {"RBEE_WHEEL_INDEX": "off"}) == []
        named = {"RBEE_WHEEL_INDEX": "https://x.example/"}
        assert indexes("cpu", HERE, builders, named) == [WheelIndex("https://x.example")]
    assert not KEEPER.include(OFFICIAL_URL)


def test_the_official_wheels_for_cuda_are_those_whose_toolkit_the_node_has() -> None:
    builders = asking(node=GPU1)
    builders = replace(builders, others=frozenset({OFFICIAL_URL}))
    assert indexes("cuda", HERE, builders, {}) == []
    with_toolkit = replace(HERE, cudart=frozenset({12}))
    assert indexes("cuda", with_toolkit, builders, {}) == [OFFICIAL]
    assert folders(OFFICIAL, "cuda", with_toolkit)[0] == "cu121"
    assert folders(WheelIndex("https://w.example"), "cuda", with_toolkit) == ("cuda",)


def official_page(other: str, version: str = VERSION) -> str:
    """As llama-cpp-python's own index is written: absolute addresses elsewhere, no hashes, all versions and systems."""
    tags = ["py3-none-win_amd64", "py3-none-macosx_11_0_arm64", "py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64"]
    tags += ["py3-none-musllinux_1_2_x86_64", "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"]
    links = [f"{other}/v{version}/llama_cpp_python-{version}-{tag}.whl" for tag in tags]
    old = f"{other}/v0.2.1/llama_cpp_python-0.2.1-cp311-cp311-manylinux_2_17_x86_64.whl"
    return "<h1>Links</h1>" + "".join(f'<h2>v</h2>\n    <a href="{link}">{link}</a>\n<br>' for link in (old, *links))


@pytest.mark.skipif(HERE.machine != "x86_64" or CC is None, reason="the page has wheels for x86-64; needs cc")
async def test_the_official_page_is_understood(
    cache: WheelCache, server: WheelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = library(tmp_path, container("sm_90"), needs="libcudart.so.12").getvalue()
    wheel = make_wheel(tmp_path / "made", {"llama_cpp/lib/libggml-cuda.so": code})
    official = WheelIndex(server.url)
    monkeypatch.setattr(wheel_index, "OFFICIAL", official)
    builders = Builders("", frozenset({OFFICIAL_URL, server.url}))
    name = f"llama_cpp_python-{VERSION}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    with serving() as other:
        server.page(official_page(other.url), "cpu/llama-cpp-python/")
        server.page(official_page(other.url, "0.3.1"), "cu121/llama-cpp-python/")
        server.page(official_page(other.url), "cu124/llama-cpp-python/")
        other.paths[f"/v{VERSION}/{name}"] = body(wheel.read_bytes())
        target = replace(HERE, cudart=frozenset({12}))
        said: list[Event] = []
        for backend in ("cpu", "cuda"):
            found = await cache.from_indexes(target, backend, lambda _: None, builders)
            assert found
            assert found.name == name
        assert cache.find_llama(target, "cuda", builders)
        assert cache.find_llama(target, "cuda", KEEPER) is None
        (known,) = (LlamaWheel.read(path) for path in cache.root.glob("llama/cuda-*/wheel.json"))
        assert known.cuda == "12 sass 9.0 ptx by"
        ada = replace(target, cuda=(12, 4), gpus=frozenset({(8, 9)}))
        assert cache.find_llama(ada, "cuda", builders) is None
        assert await cache.from_indexes(ada, "cuda", said.append, builders) is None
        assert any("compute capability 8.9" in str(event) for event in said)
        assert set(other.asked) == {f"/v{VERSION}/{name}"}
    folders = [path.split("/")[1] for path in server.asked]
    assert folders[:5] == ["cpu", "cu121", "cu122", "cu123", "cu124"]


@pytest.mark.parametrize(
    ("text", "url", "hashes", "name"),
    [
        ("https://w.example/llama/", "https://w.example/llama", 0, "https://w.example/llama"),
        ("https://me:secret@w.example/llama", "https://me:secret@w.example/llama", 0, "https://w.example/llama"),
        (f"https://w.example#sha256={'a' * 64}", "https://w.example", 1, "https://w.example"),
        ("/srv/wheels", "file:///srv/wheels", 0, "file:///srv/wheels"),
    ],
)
def test_how_the_variable_is_written(text: str, url: str, hashes: int, name: str) -> None:
    (index,) = indexes("cpu", HERE, KEEPER, {"RBEE_WHEEL_INDEX": text})
    assert (index.url, len(index.sha256), index.name) == (url, hashes, name)
    assert wheel_index.may_serve(index, KEEPER) is bool(hashes)


@pytest.mark.parametrize("wrong", ["#md5=12", "#sha256=12", f"#sha256={'g' * 64}", f"#sha256={'a' * 64};x", "?a=b"])
def test_a_variable_that_names_none_is_an_error_and_not_no_hash(wrong: str) -> None:
    with pytest.raises(ConfigError, match="RBEE_WHEEL_INDEX"):
        indexes("cpu", HERE, KEEPER, {"RBEE_WHEEL_INDEX": f"https://w.example{wrong}"})


def test_a_password_is_in_no_command_line() -> None:
    request = wheel_fetch.Request("https://me:secret@w.example", ["cpu"], VERSION, [], [3, 11], [], "", 1, "/")
    assert b"secret" in request.text()
    assert "secret" not in WheelIndex(request.url).name


def test_a_signature_that_asyncssh_stumbles_over_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with random changes to an RSA signature."""

    class Pages(Reader):
        def __init__(self) -> None:
            pass

        def read(self, place: str, most: int) -> tuple[bytes, str, str]:
            return b"", place, ""

    def stumble(*_: object) -> bool:
        raise OverflowError("can't convert negative int to unsigned")

    monkeypatch.setattr(asyncssh, "validate_sshsig", stumble)
    request = wheel_fetch.Request("https://index", ("cpu",), "1.0", [], (3, 11), (), "ssh-rsa AAAA", 1, "/nowhere")
    with pytest.raises(wheel_fetch.RefusedError, match="not signed with the key"):
        wheel_fetch._signed(Pages(), request)
