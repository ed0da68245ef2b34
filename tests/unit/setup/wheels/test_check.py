"""What a wheel says of where it runs, with the libraries of the real llama.cpp, some of them spoiled."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import portable
from rbee.setup.wheels.cache import Origin, WheelCache
from rbee.setup.wheels.check import needed_cpu
from rbee_remote.protocol import ErrorCode
from tests.unit.setup.tiny_packages import write_wheel
from tests.unit.setup.wheel_server import VERSION, real_files

pytestmark = pytest.mark.skipif(Target.here().machine != "x86_64", reason="spoils libraries for x86-64")

#: Two nodes: one whose processor is from before 2013, and one with AVX2.
_SINCE_2011 = {"pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "lahf_lm", "avx", "f16c"}
OLD = replace(Target.here(), cpu=frozenset(_SINCE_2011))
NEW = replace(OLD, cpu=OLD.cpu | frozenset(["avx2", "bmi1", "bmi2", "fma", "abm", "movbe"]))
HASWELL, X64 = "bin/libggml-cpu-haswell.so", "bin/libggml-cpu-x64.so"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return real_files()


def made(folder: Path, files: Mapping[str, bytes], *, version: str = VERSION) -> Path:
    return write_wheel(folder, "llama_cpp_python", files, version=version, tag="py3-none-linux_x86_64")


def fixed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """As other projects build it: one ggml, which is used on whatever processor there is."""
    library = files[HASWELL].replace(b"\0ggml_backend_score\0", b"\0ggml_backend_other\0")
    others = {name: data for name, data in files.items() if not name.startswith("bin/")}
    return {**others, "llama_cpp/lib/libggml-cpu.so": library}


def spoiled(files: Mapping[str, bytes], name: str, old: bytes, new: bytes) -> dict[str, bytes]:
    assert len(old) == len(new)
    assert old in files[name]
    return {**files, name: files[name].replace(old, new)}


def test_a_build_of_ours_runs_on_every_processor(files: dict[str, bytes], tmp_path: Path) -> None:
    assert needed_cpu(made(tmp_path, files), replace(OLD, cpu=frozenset())) == frozenset()


def test_one_that_is_made_for_one_kind_of_processor_runs_on_that_kind(
    files: dict[str, bytes], tmp_path: Path, cache: WheelCache
) -> None:
    wheel = made(tmp_path, fixed(files))
    with pytest.raises(NodeError, match="compiled for processors with abm, avx2, bmi1, bmi2, fma, movbe") as caught:
        needed_cpu(wheel, OLD)
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    with pytest.raises(NodeError, match="not known to have"):
        needed_cpu(wheel, replace(OLD, cpu=frozenset()))
    needed = needed_cpu(wheel, NEW)
    assert needed == NEW.cpu
    added = cache.add_wheel(wheel, "cpu", origin=Origin(cpu=" ".join(needed)))
    assert cache.find_llama(NEW, "cpu") == added
    assert cache.find_llama(OLD, "cpu") is None


def test_what_runs_anywhere_comes_before_what_is_made_for_one_kind(
    files: dict[str, bytes], tmp_path: Path, cache: WheelCache
) -> None:
    cache.add_wheel(made(tmp_path / "1", fixed(files)), "cpu", origin=Origin(cpu=" ".join(NEW.cpu)))
    anywhere = cache.add_wheel(made(tmp_path / "2", files), "cpu")
    assert cache.find_llama(NEW, "cpu") == anywhere


def test_variants_of_which_none_is_for_all_processors(files: dict[str, bytes], tmp_path: Path) -> None:
    wheel = made(tmp_path, {name: data for name, data in files.items() if name != X64})
    assert needed_cpu(wheel, NEW) == NEW.cpu
    with pytest.raises(NodeError, match="compiled for processors with"):
        needed_cpu(wheel, OLD)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda files: {}, "its libraries lack"),
        (
            lambda files: spoiled(files, "llama_cpp/lib/libllama.so", b"\0llama_decode\0", b"\0llama_decodX\0"),
            "llama_decode",
        ),
        (lambda files: {k: v for k, v in files.items() if not k.startswith("bin/")}, "no ggml that computes"),
        (
            lambda files: spoiled(
                fixed(files), "llama_cpp/lib/libggml-cpu.so", b"ggml_cpu_has_avx2\0", b"ggml_cpu_has_avxX\0"
            ),
            "does not say which processors",
        ),
        (
            lambda files: spoiled(
                fixed(files), "llama_cpp/lib/libggml-cpu.so", b"\xb8\x01\0\0\0\xc3", b"\xb8\x02\0\0\0\xc3"
            ),
            "not say in a way that is understood",
        ),
        (
            lambda files: {k: v for k, v in files.items() if "libggml-base" not in k},
            "it needs libggml-base.so.0, and does not bring it",
        ),
        (lambda files: spoiled(files, "llama_cpp/__init__.py", b"0.3.36", b"0.3.35"), "it is version 0.3.35, not"),
        (lambda files: {**files, X64: files[X64][:18] + b"\xb7\0" + files[X64][20:]}, "for another processor"),
        (lambda files: {**files, X64: files[X64][:5000]}, "cannot be used"),
        (lambda files: spoiled(files, X64, b"\0libstdc++.so.6\0", b"\0libcudart.so.6\0"), "it needs libcudart.so.6"),
    ],
)
def test_what_is_not_sure_to_run_is_refused(
    spoil: Callable[[dict[str, bytes]], dict[str, bytes]], why: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    left = {
        "llama_cpp/__init__.py": files["llama_cpp/__init__.py"],
        "llama_cpp/llama_cpp.py": files["llama_cpp/llama_cpp.py"],
    }
    wheel = made(tmp_path, spoil(files) or left)
    with pytest.raises(NodeError, match=why):
        needed_cpu(wheel, NEW)


def test_a_library_that_nobody_has(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = made(tmp_path, {name: data for name, data in files.items() if "libgomp" not in name})
    monkeypatch.setenv("PATH", "/nowhere")  # no compiler here that has it
    with pytest.raises(NodeError, match=r"it needs libgomp\.so\.1, and does not bring it"):
        needed_cpu(wheel, NEW)


def test_a_toolkit_that_the_node_has_is_no_reason(files: dict[str, bytes], tmp_path: Path) -> None:
    wheel = made(tmp_path, spoiled(files, X64, b"\0libstdc++.so.6\0", b"\0libcudart.so.6\0"))
    assert needed_cpu(wheel, replace(NEW, cudart=frozenset({6}))) == frozenset()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (replace(NEW, libc_version=(2, 5)), r"it needs glibc 2\.\d+, this is linux-x86_64-glibc2.5"),
        (replace(NEW, libc="musl", libc_version=(1, 2)), "it needs glibc"),
        (replace(NEW, machine="aarch64"), "is for another processor"),
    ],
)
def test_another_machine(target: Target, why: str, files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=why):
        needed_cpu(made(tmp_path, files), target)


def test_another_version_under_the_right_name(files: dict[str, bytes], tmp_path: Path) -> None:
    wheel = made(tmp_path, files, version="0.3.1")
    wheel = wheel.rename(wheel.with_name(f"llama_cpp_python-{VERSION}-py3-none-linux_x86_64.whl"))
    assert requirements.llama().version == VERSION
    with pytest.raises(NodeError, match=f"it is version 0.3.1, not {VERSION}"):
        needed_cpu(wheel, NEW)


def _bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("llama_cpp/bomb", bytes(2**24), zipfile.ZIP_DEFLATED)


def _way_out(archive: zipfile.ZipFile) -> None:
    archive.writestr("../../.ssh/authorized_keys", b"")


def _absolute(archive: zipfile.ZipFile) -> None:
    archive.writestr("/etc/profile", b"")


def _link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("llama_cpp/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc")


def _twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("llama_cpp/__init__.py", b"")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_bomb, "more than such an archive has"),
        (_way_out, "it has a file '../../.ssh/authorized_keys'"),
        (_absolute, "it has a file '/etc/profile'"),
        (_link, "is a link"),
        (_twice, "two files of one name"),
    ],
)
def test_archives_that_do_harm_when_they_are_unpacked(
    spoil: Callable[[zipfile.ZipFile], None],
    why: str,
    files: dict[str, bytes],
    tmp_path: Path,
    cache: WheelCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(portable, "LARGEST_FILE", 2**23)
    wheel = made(tmp_path, files)
    with zipfile.ZipFile(wheel, "a") as archive:
        spoil(archive)
    for use in (lambda: needed_cpu(wheel, NEW), lambda: cache.add_wheel(wheel, "cpu")):
        with pytest.raises(NodeError, match=why):
            use()
    assert not list(cache.root.glob("llama/*"))


def test_what_auditwheel_has_put_into_a_wheel_stays(tmp_path: Path) -> None:
    """Its names are longer than those of the libraries that nothing loads."""
    kept, other = "llama_cpp_python.libs/libgomp-a34b3233.so.1.0.0", "llama_cpp/lib/libggml.so.0.9.4"
    wheel = made(tmp_path / "made", {kept: b"x", other: b"x"})
    portable.make_portable(wheel, tmp_path / wheel.name, lambda _: None)
    with zipfile.ZipFile(tmp_path / wheel.name) as archive:
        assert kept in archive.namelist()
        assert other not in archive.namelist()


def test_a_machine_without_a_compiler_has_no_libraries_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert portable.local_library("libgomp.so.1") is None


@pytest.mark.parametrize(
    ("tag", "oldest"),
    [("manylinux_2_35_x86_64", (2, 35)), ("manylinux_2_17_x86_64.manylinux2014_x86_64", (2, 17)), ("linux_x86_64", ())],
)
def test_what_installers_go_by_counts_too(
    tag: str, oldest: tuple[int, ...], files: dict[str, bytes], tmp_path: Path, cache: WheelCache
) -> None:
    """uv on the node takes a wheel by its name, whatever the libraries in it would run with."""
    wheel = write_wheel(tmp_path, "llama_cpp_python", files, version=VERSION, tag=f"py3-none-{tag}")
    needed = max(portable.needed_glibc(wheel), oldest)
    added = cache.add_wheel(wheel, "cpu")
    assert added.sha256 == hashlib.sha256(wheel.read_bytes()).hexdigest(), "nothing to take out, so it stays as it is"
    assert cache.find_llama(replace(NEW, libc_version=needed), "cpu") == added
    assert cache.find_llama(replace(NEW, libc_version=(2, needed[1] - 1)), "cpu") is None
