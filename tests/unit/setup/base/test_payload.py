"""The payload: named by its contents, made of the package alone, and runnable."""

from __future__ import annotations

import io
import os
import py_compile
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee.setup.base.payload import Payload, build_compiled, build_payload, compiled, pack, package_folder


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


# --- with bytecode ----------------------------------------------------------------------------------------------------


def test_bytecode_is_beside_each_source_and_changes_no_digest(package: Path) -> None:
    plain, both = pack(package), compiled(package)
    assert both.digest == plain.digest
    assert both.name == plain.name
    assert set(names(both.data)) == {*names(plain.data), "pkg/__init__.pyc", "pkg/sub/a.pyc"}
    sources = {name: content(plain, name) for name in names(plain.data)}
    assert {name: content(both, name) for name in sources} == sources


def test_bytecode_does_not_say_where_the_keeper_has_its_code(package: Path) -> None:
    (package / "sub" / "a.py").write_text("def outer():\n    return lambda: 1\n")
    both = compiled(package)
    assert not any(str(package).encode() in content(both, name) for name in names(both.data))
    assert str(package.parents[1]).encode() not in both.data


def test_python_takes_the_bytecode_and_another_minor_version_the_source(package: Path, tmp_path: Path) -> None:
    """The version is told by the magic number at the beginning of the bytecode."""
    (package / "sub" / "__init__.py").write_text("")
    path = tmp_path / "both.zip"
    path.write_bytes(replaced(compiled(package).data, "pkg/sub/a.py", lambda _: b"A = 'source'\n"))
    assert imported(path) == "1"  # what was compiled; nobody looks at the source
    path.write_bytes(replaced(path.read_bytes(), "pkg/sub/a.pyc", lambda data: bytes(2) + data[2:]))
    assert imported(path) == "source"


def test_what_python_O_leaves_out_is_not_left_out_on_nodes(package: Path) -> None:
    (package / "sub" / "a.py").write_text("assert A\n")
    program = "import sys, pathlib; from rbee.setup.base.payload import compiled; "
    program += "sys.stdout.buffer.write(compiled(pathlib.Path(sys.argv[1])).data)"
    done = subprocess.run([sys.executable, "-OO", "-c", program, str(package)], capture_output=True, check=True)
    assert done.stdout == compiled(package).data


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode))
def test_what_lies_in_a_pycache_is_not_what_nodes_get(package: Path, mode: py_compile.PycInvalidationMode) -> None:
    """A source that was changed within a second and has the size that it had looks as it did when it was compiled."""
    source = package / "sub" / "a.py"
    fresh, before = compiled(package), source.stat()
    source.write_text("A = 2\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    py_compile.compile(str(source), invalidation_mode=mode)
    source.write_text("A = 1\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert compiled(package) == fresh


def test_errors_show_the_line_of_the_source(package: Path, tmp_path: Path) -> None:
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "a.py").write_text("\n1 / 0  # here\n")
    path = tmp_path / "both.zip"
    path.write_bytes(compiled(package).data)
    done = run(path, "import traceback\ntry: import pkg.sub.a\nexcept ZeroDivisionError: traceback.print_exc()")
    assert "line 2" in done.stderr
    assert "1 / 0  # here" in done.stderr


def test_the_real_payload_with_bytecode_is_the_same_rbee_and_runs(tmp_path: Path) -> None:
    assert build_compiled().digest == build_payload().digest
    path = tmp_path / build_compiled().name
    path.write_bytes(build_compiled().data)
    done = run(path, "import rbee_remote.__main__ as m; print(m.__spec__.cached or m.__spec__.origin)")
    assert done.stdout.strip().endswith("__main__.pyc"), done


def content(payload: Payload, name: str) -> bytes:
    return zipfile.ZipFile(io.BytesIO(payload.data)).read(name)


def replaced(data: bytes, name: str, by: Callable[[bytes], bytes]) -> bytes:
    before, buffer = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as after:
        for each in before.namelist():
            after.writestr(each, by(before.read(each)) if each == name else before.read(each))
    return buffer.getvalue()


def run(path: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def imported(path: Path) -> str:
    return run(path, "import pkg.sub.a as a; print(a.A)").stdout.strip()
