"""The payload: named by its contents, made of the package alone, and runnable."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rbee.setup.base.payload import build_payload, pack, package_folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "somewhere" / "pkg"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "sub" / "a.py").write_text("A = 1\n")
    return folder


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_equal_contents_give_equal_bytes_wherever_and_whenever_they_lie(package: Path, tmp_path: Path) -> None:
    first = pack(package)
    copy = tmp_path / "elsewhere" / "pkg"
    shutil.copytree(package, copy)
    os.utime(copy / "__init__.py", (1, 1))
    assert pack(copy) == first
    assert len(first.digest) == 16
    assert first.name == f"{first.digest}.zip"


def test_another_content_path_or_file_gives_another_digest(package: Path) -> None:
    digests = {pack(package).digest}
    (package / "sub" / "a.py").write_text("A = 2\n")
    digests.add(pack(package).digest)
    (package / "sub" / "a.py").rename(package / "sub" / "b.py")
    digests.add(pack(package).digest)
    (package / "c.py").write_text("")
    digests.add(pack(package).digest)
    assert len(digests) == 4


def test_what_python_and_editors_leave_behind_does_not_travel(package: Path) -> None:
    clean = pack(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (package / ".a.py.swp").write_bytes(b"x")
    (package / "a.py~").write_bytes(b"x")
    assert pack(package) == clean
    assert names(clean.data) == ["__main__.py", "pkg/__init__.py", "pkg/sub/a.py"]


def test_the_real_payload_holds_the_whole_package_and_nothing_else() -> None:
    inside = names(build_payload().data)
    sources = {f"rbee_remote/{path.relative_to(package_folder())}" for path in package_folder().rglob("*.py")}
    assert sources <= set(inside)
    assert {name.split("/")[0] for name in inside} == {"__main__.py", "rbee_remote"}


def test_the_real_payload_runs_isolated_from_everything_around_it(tmp_path: Path) -> None:
    path = tmp_path / build_payload().name
    path.write_bytes(build_payload().data)
    command = [sys.executable, "-I", str(path), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("hive", "worker", "download", "inspect", "pipe"):
        assert name in done.stdout
