"""Which Python is in the one file: the one here that needs the oldest glibc, with all that it is linked to."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tools.one_file import interpreter
from tools.one_file.interpreter import Interpreter

#: A program whose glibc is old, as python-build-standalone's.
UV = Path(sys.executable).with_name("uv")


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python(folder: Path, version: str) -> Path:
    """What says that it is a Python, and has a program that is one as far as the C library sees."""
    name = "python" + version.rpartition(".")[0]
    (folder / "lib" / name).mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / name).symlink_to(UV)
    said = json.dumps([version, str(folder), str(folder / "lib" / name)])
    return program(folder / "python", f"echo '{said}'")


def uv(folder: Path, *pythons: Path) -> Path:
    listed = json.dumps([{"path": str(path)} for path in pythons])
    return program(folder / "uv", f"[ \"$1 $2 $3\" = 'python list --only-installed' ] && echo '{listed}'")


def test_the_one_that_needs_the_oldest_glibc_is_taken_and_of_two_the_newer(tmp_path: Path) -> None:
    older, newer = python(tmp_path / "a", "3.98.10"), python(tmp_path / "b", "3.98.9")
    assert Interpreter.of(older).glibc <= Interpreter.of(sys.executable).glibc
    broken = program(tmp_path / "c" / "python", "exit 3")
    assert interpreter.choose(uv(tmp_path, newer, broken, older)).version == "3.98.10"


def test_where_uv_knows_of_none_it_is_the_one_that_runs_this(tmp_path: Path) -> None:
    chosen = interpreter.choose(uv(tmp_path))
    assert chosen.program.samefile(Path(sys.base_prefix) / "bin" / chosen.name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('echo \'["3.10.1", "/usr", "/usr/lib"]\'', "rbee needs Python 3.11 or newer; "),
        ("echo one >&2; echo cannot go on >&2; exit 1", "is no Python that works: cannot go on"),
    ],
)
def test_what_cannot_be_inside_is_told_why(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Interpreter.of(program(tmp_path / "python", text))


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be run: No such file or directory"):
        Interpreter.of(tmp_path / "python")


def test_libraries_are_found_by_name_and_by_path_without_the_c_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "linux-vdso.so.1 (0x00007ffc)",
        "/opt/py/bin/../lib/libpython3.12.so.1.0 (0x00007f01)",
        "libssl.so.3 => /usr/lib/libssl.so.3 (0x00007f02)",
        "libc.so.6 => /usr/lib/libc.so.6 (0x00007f03)",
        "/lib64/ld-linux-x86-64.so.2 (0x00007f04)",
    ]
    program(tmp_path / "ldd", f"printf '%s\\n' {' '.join(map(repr, lines))}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = Path("/opt/py/bin/../lib")
    assert interpreter._linked([UV]) == [folder / "libpython3.12.so.1.0", Path("/usr/lib/libssl.so.3")]


def test_a_library_that_is_not_there_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "ldd", "echo '\tlibxyz.so.1 => not found'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SystemExit, match=r"needs libxyz\.so\.1, which is not there"):
        interpreter._linked([UV])
