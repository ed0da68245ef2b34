"""What makes runtimes on nodes, called here; `test_bootstrap` has it run by a node's Python."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from rbee.base.files import LocalFile
from rbee.setup.base import make_runtime
from rbee.setup.base.bundle import Bundle
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
    make_runtime.unpack(path, bundle.sha256, site)
    assert [path.name for path in (site / "one").iterdir()] == ["x.py"]
    assert [(site / name / "x.py").read_text() for name in names] == list(names)


def test_what_has_another_hash_is_not_unpacked(tmp_path: Path) -> None:
    wheel = LocalFile.of(write_wheel(tmp_path, "one", {"one.py": b""}))
    with pytest.raises(SystemExit, match="another SHA-256"):
        make_runtime.unpack(wheel.path, "0" * 64, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_wheel_that_has_files_for_other_folders_is_refused(tmp_path: Path) -> None:
    wheel = LocalFile.of(write_wheel(tmp_path, "one", {"one-1.0.data/scripts/one": b""}))
    with pytest.raises(SystemExit, match=r"one-1\.0\.data/scripts/one belongs elsewhere"):
        make_runtime.unpack(wheel.path, wheel.sha256, tmp_path / "site")


@pytest.mark.parametrize(("later", "compiled"), [("import two", {"one", "two"}), ("import three", {"one"})])
def test_what_is_imported_later_is_compiled_too_and_need_not_work(
    tmp_path: Path, later: str, compiled: set[str]
) -> None:
    wheels = [write_wheel(tmp_path, name, {f"{name}.py": b""}) for name in ("one", "two")]
    words = [word for path in wheels for word in (LocalFile.of(path).sha256, str(path))]
    make_runtime.main(tmp_path / "staged", tmp_path / "final", "import one", "", later, *words)
    found = (tmp_path / "final").glob("lib/*/site-packages/__pycache__/*.pyc")
    assert {path.name.partition(".")[0] for path in found} == compiled


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
