"""What makes runtimes on nodes, called here; `test_bootstrap` has it run by a node's Python."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.files import LocalFile
from rbee.setup.base import compile_later, make_runtime
from rbee.setup.base.bundle import Bundle
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until
from tests.unit.setup.tiny_packages import write_wheel


def test_a_bundle_is_the_same_bytes_for_the_same_files_and_is_unpacked_to_what_they_hold(tmp_path: Path) -> None:
    names = ("one", "two")
    contents = [{f"{name}/x.py": name.encode(), f"{name}/tests/x.py": b"", f"{name}/x.pyi": b""} for name in names]
    wheels = [LocalFile.of(write_wheel(tmp_path, *item)) for item in zip(names, contents, strict=True)]
    bundle = Bundle.of("packages.tar", wheels)
    assert bundle == Bundle.of("packages.tar", wheels)
    assert bundle.sha256 == hashlib.sha256(bundle.source).hexdigest()
    path, site = tmp_path / bundle.name, tmp_path / "site"
    path.write_bytes(bundle.source)
    make_runtime.unpack_all([(path, bundle.sha256)], site)
    assert [path.name for path in (site / "one").iterdir()] == ["x.py"]
    assert [(site / name / "x.py").read_text() for name in names] == list(names)


def test_what_has_another_hash_is_not_unpacked(tmp_path: Path) -> None:
    wheel = LocalFile.of(write_wheel(tmp_path, "one", {"one.py": b""}))
    with pytest.raises(SystemExit, match="another SHA-256"):
        make_runtime.unpack_all([(wheel.path, "0" * 64)], tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_wheel_that_has_files_for_other_folders_is_refused(tmp_path: Path) -> None:
    wheel = LocalFile.of(write_wheel(tmp_path, "one", {"one-1.0.data/scripts/one": b""}))
    with pytest.raises(SystemExit, match=r"one-1\.0\.data/scripts/one belongs elsewhere"):
        make_runtime.unpack_all([(wheel.path, wheel.sha256)], tmp_path / "site")


def test_a_change_while_two_unpack_is_seen_by_both(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wheels = [LocalFile.of(write_wheel(tmp_path, name, {f"{name}.py": b"x" * 99})) for name in ("one", "two")]
    bundle = Bundle.of("packages.tar", wheels)
    path = tmp_path / bundle.name
    path.write_bytes(bundle.source[:-1] + b"x")
    with pytest.raises(SystemExit, match="another SHA-256"):
        make_runtime.unpack_all([(path, bundle.sha256)], tmp_path / "site")
    assert "another SHA-256" in capfd.readouterr().err  # the other process
    assert not (tmp_path / "site").exists()


def test_what_only_the_other_process_meets_is_told_and_ends_this_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    large = LocalFile.of(write_wheel(tmp_path, "large", {"large.py": b"x" * 9999}))
    small = LocalFile.of(write_wheel(tmp_path, "small", {"small.py": b""}))
    with pytest.raises(SystemExit) as ended:
        make_runtime.unpack_all([(large.path, large.sha256), (small.path, "0" * 64)], tmp_path / "site")
    assert ended.value.code == 1
    assert f"{small.path} has another SHA-256" in capfd.readouterr().err


def test_packages_of_one_namespace_are_unpacked_by_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA's, which share folders: each may be made by the other just when it was found missing."""
    wheel = LocalFile.of(write_wheel(tmp_path, "one", {"shared/deep/one.py": b""}))
    exists = os.path.exists

    def then_made(path: str) -> bool:
        found = exists(path)
        if not found:
            Path(path).mkdir(parents=True, exist_ok=True)
        return found

    monkeypatch.setattr(os.path, "exists", then_made)
    with wheel.path.open("rb") as file:
        make_runtime.install(file, tmp_path / "site")
    assert (tmp_path / "site/shared/deep/one.py").is_file()


def test_a_process_that_is_killed_is_no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a kernel that is short of memory."""
    wheel = LocalFile.of(write_wheel(tmp_path, "one", {"one.py": b""}))
    monkeypatch.setattr(make_runtime, "unpack_as_child", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SystemExit, match="ended by signal 9"):
        make_runtime.unpack_all([(wheel.path, wheel.sha256)], tmp_path / "site")


@given(st.lists(st.integers(0, 10**9), max_size=40))
def test_each_wheel_is_unpacked_by_one_of_the_two_and_neither_gets_more_than_the_largest_above_the_other(
    sizes: list[int],
) -> None:
    wheels = [(size, (Path("packages.tar"), str(number))) for number, size in enumerate(sizes)]
    one, two = make_runtime.halves(wheels)
    assert one | two == {wheel for _, wheel in wheels}
    assert not one & two
    sums = [sum(size for size, wheel in wheels if wheel in part) for part in (one, two)]
    assert abs(sums[0] - sums[1]) <= max(sizes, default=0)


@pytest.mark.parametrize(
    ("packages", "llama", "status"),
    [("import one", "import two", None), ("import one", "import none", 3), ("import none", "import one", 1)],
)
def test_a_runtime_gets_its_name_where_both_programs_work(
    tmp_path: Path, packages: str, llama: str, status: int | None
) -> None:
    if status is None:
        process = _made(tmp_path, packages, llama, [])
        assert process is not None
        assert process.wait(PATIENCE_S) == 0
    else:
        with pytest.raises(SystemExit) as ended:
            _made(tmp_path, packages, llama, [])
        assert ended.value.code == status
    assert (tmp_path / "final").exists() == (status is None)


def test_what_is_imported_later_is_compiled_in_a_session_of_its_own_and_need_not_work(tmp_path: Path) -> None:
    process = _made(tmp_path, "import one", "", ["none", "two"])
    assert process is not None
    assert process.wait(PATIENCE_S) == 0
    found = (tmp_path / "final").glob("lib/*/site-packages/__pycache__/*.pyc")
    assert {path.name.partition(".")[0] for path in found} == {"one", "two"}


def test_what_compiles_on_is_known_by_its_runtime_and_waits_for_nobody(tmp_path: Path) -> None:
    """Its command line begins with the runtime: `traces.sh` and `usage.py` see whose it is."""
    process = _made(tmp_path, "", "", ["slow"])
    assert process is not None
    try:
        wait_until((tmp_path / "reached").exists, PATIENCE_S, lambda: "it does not begin")
        found = psutil.Process(process.pid)
        assert found.cmdline()[:2] == [str(tmp_path / "final/bin/python"), "-I"]
        assert found.nice() == compile_later.NICE
        assert os.getsid(process.pid) == process.pid
    finally:
        process.kill()
        process.wait()


def test_it_puts_nothing_back_where_its_runtime_was_removed_and_ends(tmp_path: Path) -> None:
    process = _made(tmp_path, "", "", ["slow", "two"])
    assert process is not None
    wait_until((tmp_path / "reached").exists, PATIENCE_S, lambda: "it does not begin")
    shutil.rmtree(tmp_path / "final")
    (tmp_path / "go on").touch()
    assert process.wait(PATIENCE_S) == 0
    assert not (tmp_path / "final").exists()


def test_a_second_one_whose_runtime_another_has_made_compiles_nothing(tmp_path: Path) -> None:
    first = _made(tmp_path, "import one", "", [])
    assert first is not None
    first.wait(PATIENCE_S)
    assert _made(tmp_path, "import one", "", ["two"], staged="again") is None


def _made(
    folder: Path, packages: str, llama: str, later: list[str], staged: str = "staged"
) -> subprocess.Popen[bytes] | None:
    """A runtime of `one`, `two` and `slow`, which reports when it is imported and has what it imports read before it
    waits."""
    slow = (
        "import pathlib, time\n"
        f"pathlib.Path({str(folder / 'reached')!r}).touch()\n"
        f"while not pathlib.Path({str(folder / 'go on')!r}).exists(): time.sleep(0.01)\n"
        "import importlib.util, importlib.machinery\n"
        "loader = importlib.machinery.SourceFileLoader('x', __file__)\n"
        "loader._cache_bytecode(__file__, importlib.util.cache_from_source(__file__) + '.pyc', b'compiled')\n"
    )
    files = {"one": "", "two": "", "slow": slow}
    wheels = [write_wheel(folder, name, {f"{name}.py": code.encode()}) for name, code in files.items()]
    words = [word for path in wheels for word in (LocalFile.of(path).sha256, str(path))]
    program = Path(compile_later.__file__).read_text(encoding="utf-8")
    compiling = json.dumps(["-I", "-c", program, *later])
    return make_runtime.main(folder / staged, folder / "final", packages, llama, compiling, *words)


LIBRARIES = {
    "nvidia/cu13/lib/libcublas.so.13": b"cublas",
    "nvidia/cu13/lib/libcublasLt.so.13": b"cublasLt",
    "nvidia/cu13/lib/libnvblas.so.13": b"not loaded",
    "nvidia/cu13/include/cublas.h": b"",
}


def test_cudas_libraries_lie_apart_and_are_the_same_files_in_the_next_runtime(tmp_path: Path) -> None:
    wheel = LocalFile.of(write_wheel(tmp_path, "nvidia_cublas", LIBRARIES))
    runtimes = tmp_path / "runtimes"
    for key in ("0" * 16, "1" * 16):
        later = json.dumps(["-c", ""])
        words = (wheel.sha256, str(wheel.path))
        compiling = make_runtime.main(runtimes / f".staging-{key}", runtimes / key, "", "", later, *words)
        assert compiling is not None
        compiling.wait()
        wheel.path.unlink(missing_ok=True)  # the second one finds the first one's
    first, second = (sorted((runtimes / key / "libraries" / wheel.sha256).iterdir()) for key in ("0" * 16, "1" * 16))
    assert [path.name for path in first] == ["libcublas.so.13", "libcublasLt.so.13"]
    assert [path.stat().st_ino for path in first] == [path.stat().st_ino for path in second]
    assert not list((runtimes / ("0" * 16)).glob("lib/*/site-packages/nvidia"))


def test_a_library_with_another_hash_is_not_unpacked(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "nvidia_cublas", LIBRARIES)
    with pytest.raises(SystemExit, match="another SHA-256"):
        make_runtime.bring_libraries(wheel, "0" * 64, tmp_path / "staged" / "libraries", tmp_path / "runtimes")
