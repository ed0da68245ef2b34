"""Wheels in an index that others fetch from: whole, under a lock, signed by one key, and nothing of others touched."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.utils import parse_wheel_filename

from rbee.base.errors import ConfigError, ConnectError, NodeError, UsageError
from rbee.base.events import Event, silent
from rbee.base.files import LocalFile
from rbee.inventory import Node, WheelIndex
from rbee.setup.base import requirements
from rbee.setup.base.cuda import Architecture, Code
from rbee.setup.base.platforms import Target
from rbee.setup.index import files as index_files
from rbee.setup.index import scripts as index_scripts
from rbee.setup.index.builders import Builders
from rbee.setup.index.publishing import Offer, Publisher, Pushed
from rbee.setup.index.signature import Signer
from rbee.setup.wheels.cache import WheelCache
from rbee.setup.wheels.llama_wheel import LlamaWheel
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import ErrorCode
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_source, write_wheel
from tests.unit.setup.wheel_server import VERSION, make_wheel

HERE = Target.here()
needs_ssh_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="there is no ssh-keygen")


@pytest.fixture
async def connection() -> AsyncIterator[LocalConnection]:
    async with LocalConnection(keeper_id="0" * 16) as connection:
        yield connection


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "the index"


def offer(folder: Path, content: bytes = b"", *, backend: str = "cpu", version: str = "1.0") -> Offer:
    wheel = write_wheel(folder, "llama_cpp_python", {"llama_cpp.py": content}, version=version)
    return Offer(backend, f"{backend}/llama-cpp-python/{wheel.name}", LocalFile.of(wheel))


async def push(connection: LocalConnection, there: Path, *offers: Offer, signer: Signer | None = None) -> Pushed:
    return await Publisher(connection, str(there), str(there), signer, silent).push(offers)


def key(folder: Path, name: str = "key") -> Path:
    folder.mkdir(exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)], check=True)
    return folder / name


def is_whole(there: Path) -> bool:
    """All that is named is there, by its hash, and nothing lies about."""
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=there, check=True)
    names = {path.relative_to(there).as_posix() for path in there.rglob("*.whl")}
    pages = {path: path.read_text() for path in there.rglob("index.html")}
    linked = {f"{path.parent.relative_to(there)}/{name}" for path, text in pages.items() for name in names_in(text)}
    listed = set(index_files.read((there / "SHA256SUMS").read_text(), "it"))
    hidden = {path.name for path in there.rglob(".*")}
    return names == listed == linked and hidden == {index_scripts.LOCK}


def names_in(page: str) -> set[str]:
    return {part.partition("#")[0] for part in page.split('href="')[1:]}


async def test_a_first_push_makes_what_anybody_can_read(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    one = offer(tmp_path, backend="cpu"), offer(tmp_path, backend="vulkan")
    pushed = await push(connection, there, *one)
    assert pushed == Pushed(str(there), tuple(each.path for each in one), (), (), 2)
    assert is_whole(there)
    modes = {path.stat().st_mode & 0o777 for path in there.rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (there, *there.rglob("*")) if path.is_dir()}
    assert (modes, folders) == ({0o644}, {0o755})


async def test_another_push_adds_replaces_and_leaves_what_is_there(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    first = offer(tmp_path / "1"), offer(tmp_path / "1", version="0.9")
    await push(connection, there, *first)
    changed, new = offer(tmp_path / "2", b"changed"), offer(tmp_path / "2", version="2.0")
    assert await push(connection, there, first[1], changed, new) == Pushed(
        str(there), (new.path,), (changed.path,), (first[1].path,), 3
    )
    assert is_whole(there)


async def test_a_wheel_that_was_damaged_there_is_sent_again(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    one = offer(tmp_path)
    await push(connection, there, one)
    (there / one.path).write_bytes(b"damaged")
    assert (await push(connection, there, one)).unchanged == (one.path,)
    assert is_whole(there)


async def test_many_at_once_destroy_nothing_of_each_other(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    offers = [offer(tmp_path / str(number), version=f"2.{number}") for number in range(4)]
    same = offer(tmp_path / "same")
    await asyncio.gather(*(push(connection, there, each, same) for each in offers))
    assert is_whole(there)
    assert len(index_files.read((there / "SHA256SUMS").read_text(), "it")) == 5


@pytest.mark.parametrize("name", ["holiday.jpg", ".git"])
async def test_a_folder_of_others_stays_as_it_is(
    connection: LocalConnection, there: Path, tmp_path: Path, name: str
) -> None:
    there.mkdir()
    (there / name).touch()
    (there / "notes").mkdir()
    with pytest.raises(NodeError, match="is no index of wheels: it has"):
        await push(connection, there, offer(tmp_path))
    assert {path.name for path in there.iterdir()} == {name, "notes"}


@pytest.mark.parametrize(
    "line",
    [
        f"{'0' * 64}  debian-13.iso",
        f"{'0' * 64}  cpu/llama-cpp-python/../../../x-1.whl",
        f"{'0' * 64}  cpu/llama-cpp-python/llama_cpp_python-1/../../x.whl",
        f"{'0' * 64}  cpu/llama-cpp-python/llama_cpp_python-1<script>.whl",
        "nonsense",
    ],
)
async def test_hashes_of_something_else_and_all_beside_them_stay_as_they_are(
    connection: LocalConnection, there: Path, tmp_path: Path, line: str
) -> None:
    there.mkdir()
    (there / "SHA256SUMS").write_text(f"{line}\n")
    with pytest.raises(NodeError, match="is no index of wheels: it has another SHA256SUMS"):
        await push(connection, there, offer(tmp_path))
    assert (there / "SHA256SUMS").read_text() == f"{line}\n"
    assert [path.name for path in there.iterdir()] == ["SHA256SUMS"]
    with pytest.raises(NodeError, match="that no index of wheels has") as caught:  # whatever a machine says of it
        index_files.read(f"{line}\n", "there")
    assert caught.value.details == {"line": line}


def test_the_home_folder_by_its_short_name() -> None:
    assert 'cd -- "$HOME"\n' in index_scripts.prepare("~", [], [])


async def test_an_index_that_is_endless_is_refused(connection: LocalConnection, there: Path, tmp_path: Path) -> None:
    there.mkdir()
    with (there / "SHA256SUMS").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(NodeError, match="is no index of wheels"):
        await push(connection, there, offer(tmp_path))


async def test_a_file_in_its_place_and_a_folder_that_cannot_be_made(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    there.write_text("")
    for folder in (there, there / "below"):
        with pytest.raises(NodeError, match="cannot be written: ") as caught:
            await push(connection, folder, offer(tmp_path))
        assert caught.value.hint == "name a folder that is yours, on a disk with room"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="takes a mount of its own")
def test_a_full_disk_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    """A small disk, filled by the second push."""
    script = f"""
import asyncio, pathlib
from rbee.base.errors import NodeError
from rbee.transport.local import LocalConnection
from tests.unit.setup.index.test_publishing import is_whole, offer, push
async def main():
    there, wheels = pathlib.Path("/mnt/index"), pathlib.Path({str(tmp_path)!r})
    async with LocalConnection(keeper_id="0" * 16) as connection:
        await push(connection, there, offer(wheels / "1", bytes(10**5)))
        before = (there / "SHA256SUMS").read_bytes()
        try:
            await push(connection, there, offer(wheels / "2", bytes(10**6), version="2.0"))
        except NodeError as error:
            print(error.code.value, error.message)
        assert (there / "SHA256SUMS").read_bytes() == before
        print(is_whole(there))
asyncio.run(main())
"""
    words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=400k small /mnt && exec "$@"', "sh"]
    done = subprocess.run([*words, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip("nothing can be mounted here")
    assert done.stdout == "DISK_FULL /mnt/index cannot be written: its disk is full\nTrue\n", done.stderr


@needs_ssh_keygen
@pytest.mark.parametrize("is_signed", [True, False])
async def test_what_is_pushed_is_what_a_keeper_fetches(
    index: PackageIndex,
    cache: WheelCache,
    connection: LocalConnection,
    there: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_signed: bool,
) -> None:
    """By its hash, or by the key of who pushed; under a name that says the C library it needs."""
    monkeypatch.delenv("RBEE_WHEEL_INDEX", raising=False)
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python", version=VERSION))
    built = cache.add_wheel(make_wheel(tmp_path / "built"), "cpu")
    needs = LlamaWheel.read(built.path.with_name("wheel.json"))
    path = index_files.wheel_path("cpu", built.name, needs.libc, needs.libc_version)
    signer = await Signer.of(key(tmp_path)) if is_signed else None
    await push(connection, there, Offer("cpu", path, built), signer=signer)
    vouched = {"key": signer.public} if signer else {"sha256": (built.sha256,)}
    asked = WheelIndex(there.as_uri(), "cpu", **vouched)
    node = Node("local", wheel_index="off", wheel_indexes=(asked,))
    other, said = WheelCache(tmp_path / "other", tmp_path / "log"), list[Event]()
    found = await other.from_indexes(HERE, "cpu", said.append, Builders.of(node, {}))
    assert found is not None, said
    assert found.name == path.rpartition("/")[2]
    assert f"-{'musllinux' if HERE.libc == 'musl' else 'manylinux'}_" in found.name


@pytest.mark.parametrize(
    ("libc", "version", "tag"),
    [
        ("glibc", (2, 34), "manylinux_2_34_x86_64"),
        ("musl", (1, 2), "musllinux_1_2_x86_64"),
        ("glibc", (), "linux_x86_64"),
        ("", (), "linux_x86_64"),
    ],
)
def test_a_wheels_name_says_what_it_needs(libc: str, version: tuple[int, ...], tag: str) -> None:
    name = "llama_cpp_python-1.0-py3-none-linux_x86_64.whl"
    assert index_files.wheel_path("cpu", name, libc, version).endswith(f"-{tag}.whl")


def test_what_a_wheel_has_for_cuda_is_in_its_name_once() -> None:
    code = Code.read("13 sass 7.5 12.0a ptx 9.0 by 13.0")
    assert code
    path = index_files.wheel_path("cuda", "llama_cpp_python-1.0-py3-none-linux_x86_64.whl", "glibc", (2, 34), code)
    name = "llama_cpp_python-1.0-13_sass_7.5_12.0a_ptx_9.0_by_13.0-py3-none-manylinux_2_34_x86_64.whl"
    assert path == f"cuda/llama-cpp-python/{name}"
    assert index_files.read(f"{'0' * 64}  {path}", "there") == {path: "0" * 64}
    assert index_files.wheel_path("cuda", name, "glibc", (2, 34), code) == path


architectures = st.frozensets(
    st.builds(Architecture, st.tuples(st.integers(5, 12), st.integers(0, 9)), st.sampled_from(["", "a", "f"]))
)
versions = st.just(()) | st.tuples(st.integers(12, 13), st.integers(0, 9))


@given(st.builds(Code, st.sampled_from([12, 13]), architectures, architectures, versions))
def test_a_build_tag_tells_all_and_is_one(code: Code) -> None:
    assert Code.of_build_tag(code.build_tag) == code
    path = index_files.wheel_path("cuda", "llama_cpp_python-1.0-py3-none-linux_x86_64.whl", "glibc", (2, 34), code)
    *_, build, _ = parse_wheel_filename(path.rpartition("/")[2])
    assert "".join(map(str, build)) == code.build_tag


# --- signed ---------------------------------------------------------------------------------------------------------


def verifies(there: Path, key_file: Path) -> bool:
    """As a stranger would, with ssh-keygen alone."""
    allowed = key_file.with_name("allowed")
    allowed.write_text(f"team {key_file.with_name(f'{key_file.name}.pub').read_text()}")
    words = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "team", "-n", "rbee-wheels"]
    with (there / "SHA256SUMS").open("rb") as sums:
        done = subprocess.run([*words, "-s", str(there / "SHA256SUMS.sig")], stdin=sums, check=False)
    return done.returncode == 0


@needs_ssh_keygen
async def test_a_signed_index_stays_signed_and_takes_no_push_without_its_key(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    signer = await Signer.of(key(tmp_path))
    first, second = offer(tmp_path / "1"), offer(tmp_path / "2", version="2.0")
    await push(connection, there, first, signer=signer)
    await push(connection, there, second, signer=signer)
    assert verifies(there, tmp_path / "key")
    with pytest.raises(ConfigError, match="is signed, and without its key"):
        await push(connection, there, first)
    other = await Signer.of(key(tmp_path / "other"))
    for offers in ([first], [first, second]):
        with pytest.raises(ConfigError, match="is not signed by this key"):
            await push(connection, there, *offers, signer=other)
    assert verifies(there, tmp_path / "key")
    assert is_whole(there)


@needs_ssh_keygen
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_push_that_was_killed_between_signature_and_sums_is_finished_by_the_next(
    connection: LocalConnection, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    signer = await Signer.of(key(tmp_path))
    if not is_first:
        await push(connection, there, offer(tmp_path / "1"), signer=signer)
    commit = index_scripts.commit

    def killed(root: str, seen: str, moves: Mapping[str, str]) -> str:
        rename = next(line for line in commit(root, seen, moves).splitlines() if line.endswith(" SHA256SUMS || exit 1"))
        return commit(root, seen, moves).replace(rename, "kill -9 $$")

    second = offer(tmp_path / "2", version="2.0")
    with monkeypatch.context() as patched:
        patched.setattr(index_scripts, "commit", killed)
        patched.setattr(Publisher, "_discard", _nothing)
        with pytest.raises((NodeError, ConnectError)):
            await push(connection, there, second, signer=signer)
    assert not ((there / "SHA256SUMS").exists() and verifies(there, tmp_path / "key"))
    for file in there.glob(".incoming-*"):  # the next one comes days later
        os.utime(file, (1, 1))
    pushed = await push(connection, there, offer(tmp_path / "3", version="3.0"), signer=signer)
    assert pushed.total == 3 - is_first
    assert verifies(there, tmp_path / "key")
    assert is_whole(there)
    assert list(there.glob(".incoming-*")) == []


async def _nothing(*_: object) -> None:
    """Nobody is left who could clean up."""


@needs_ssh_keygen
async def test_a_signature_never_vouches_for_what_somebody_slipped_in(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    signer = await Signer.of(key(tmp_path))
    await push(connection, there, offer(tmp_path / "1"), signer=signer)
    with (there / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  cpu/llama-cpp-python/llama_cpp_python-9-py3-none-any.whl\n")
    with pytest.raises(ConfigError, match="is not signed by this key"):
        await push(connection, there, offer(tmp_path / "2", version="2.0"), signer=signer)
    (there / "SHA256SUMS.sig").unlink()
    with pytest.raises(ConfigError, match="has wheels that nobody has signed: cpu/"):
        await push(connection, there, offer(tmp_path / "2", version="2.0"), signer=signer)


@needs_ssh_keygen
async def test_an_unsigned_index_of_the_same_wheels_can_be_signed(
    connection: LocalConnection, there: Path, tmp_path: Path
) -> None:
    one = offer(tmp_path)
    await push(connection, there, one)
    await push(connection, there, one, signer=await Signer.of(key(tmp_path)))
    assert verifies(there, tmp_path / "key")


@needs_ssh_keygen
async def test_what_is_no_key_and_a_key_that_cannot_sign(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    for name in ("text", "none"):
        with pytest.raises(UsageError, match="--sign: "):
            await Signer.of(tmp_path / name)
    signer = await Signer.of(key(tmp_path))
    with pytest.raises(ConfigError, match="could not sign"):
        await replace(signer, file=tmp_path / "text").sign(b"x")


@needs_ssh_keygen
async def test_without_a_private_key_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    file = key(tmp_path)
    file.unlink()
    signer = await Signer.of(tmp_path / "key.pub")
    with pytest.raises(ConfigError, match="could not sign") as caught:
        await signer.sign(b"x")
    assert "ssh-add" in caught.value.hint


async def test_without_ssh_keygen_there_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no ssh-keygen"):
        await Signer.of(tmp_path / "key")


async def test_an_index_that_never_rests_is_given_up(
    connection: LocalConnection, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_scripts, "commit", lambda *_: "echo changed")
    with pytest.raises(NodeError, match="keeps being changed") as caught:
        await push(connection, there, offer(tmp_path))
    assert caught.value.code is ErrorCode.IN_USE
    assert [path.name for path in there.iterdir() if path.name.startswith(index_scripts.INCOMING)] == []
