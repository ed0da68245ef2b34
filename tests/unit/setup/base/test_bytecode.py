"""Bytecode of packages: kept beside their wheels, and what a node's Python takes in place of compiling."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rbee.base.files import LocalFile
from rbee.setup.base import bytecode, make_runtime, requirements
from rbee.setup.base.bundle import Bundle
from rbee.setup.base.node_scripts import IMPORTS
from tests.unit.setup.tiny_packages import write_wheel

HERE = sys.version_info[:2]
FILES = {"jinja2/__init__.py": b"A = 'compiled'\n", "jinja2/old.py": b"print 1\n", "jinja2/tests/a.py": b""}


@pytest.fixture
def wheels(tmp_path: Path) -> list[LocalFile]:
    named = {"jinja2": FILES, "h11": {"h11.py": b"assert False\n"}, "numpy": {"numpy.py": b""}}
    return [LocalFile.of(write_wheel(tmp_path, name, files)) for name, files in named.items()]


def test_it_is_compiled_once_for_what_is_imported_first(wheels: list[LocalFile]) -> None:
    (made,) = bytecode.of_packages(wheels, HERE)
    tag = sys.implementation.cache_tag
    with zipfile.ZipFile(made.path) as archive:
        assert archive.namelist() == [f"__pycache__/h11.{tag}.pyc", f"jinja2/__pycache__/__init__.{tag}.pyc"]
    before = made.path.stat()
    assert bytecode.of_packages(wheels, HERE) == [made]
    assert made.path.stat() == before
    assert made.path.stat().st_mode & 0o077 == 0


def test_a_runtime_takes_it_and_shows_the_lines_of_its_own_sources(wheels: list[LocalFile], tmp_path: Path) -> None:
    bundle = Bundle.of("packages.tar", [*wheels, *bytecode.of_packages(wheels, HERE)])
    path, site = tmp_path / bundle.name, tmp_path / "site"
    path.write_bytes(bundle.source)
    make_runtime.unpack_all([(path, bundle.sha256)], site)
    assert "h11.py" in _run(site, "import h11").stderr
    (site / "jinja2" / "__init__.py").write_text("A = 'from source'\n")
    assert _run(site, "import jinja2; print(jinja2.A)").stdout == "compiled\n"
    for found in (site / "jinja2" / "__pycache__").iterdir():
        found.write_bytes(b"\0\0" + found.read_bytes()[2:])  # another Python's
    assert _run(site, "import jinja2; print(jinja2.A)").stdout == "from source\n"


def test_there_is_none_for_another_python_or_other_packages(wheels: list[LocalFile]) -> None:
    assert bytecode.of_packages(wheels, (HERE[0], HERE[1] + 1)) == []
    assert bytecode.of_packages(wheels[2:], HERE) == []
    assert bytecode.of_packages([], HERE) == []


def test_a_damaged_one_is_made_anew(wheels: list[LocalFile]) -> None:
    (made,) = bytecode.of_packages(wheels, HERE)
    made.path.write_bytes(made.path.read_bytes()[:-1])
    assert bytecode.of_packages(wheels, HERE) == [made]


def test_where_it_cannot_be_kept_nodes_compile(wheels: list[LocalFile], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert bytecode.of_packages(wheels, HERE) == []
    assert sorted(path.suffix for path in wheels[0].path.parent.iterdir()) == [".whl"] * 3


def test_it_is_of_all_that_the_first_token_needs() -> None:
    program = f"import {IMPORTS}, sys; print(*(name for name in sys.modules if hasattr(sys.modules[name], '__file__')))"
    found = {name.partition(".")[0] for name in _run(None, program).stdout.split()}
    locked = {line.name.replace("-", "_") for line in requirements.read(requirements.BASE)}
    assert {"starlette", "uvicorn", "anyio"} <= found & locked <= bytecode.FIRST


def _run(site: Path | None, program: str) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(site)!r})\n" if site else ""
    command = [sys.executable, "-I", "-c", start + program]
    return subprocess.run(command, capture_output=True, text=True, check=False)
