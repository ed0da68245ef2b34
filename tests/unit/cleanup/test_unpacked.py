"""`rbee self check` and `clean`: copies of the one file on this machine, with real folders and processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee.base import installation
from rbee.cleanup import unpacked
from rbee.cli.main import main

DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that copies are looked for in."""
    folder = tmp_path / "rbee-app"
    folder.mkdir()
    monkeypatch.setattr(unpacked, "places", lambda: [folder, tmp_path / "missing"])
    monkeypatch.setenv("RBEE_HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture
def copy(place: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        image = place / name
        (image / "lib").mkdir(parents=True)
        (image / "about.json").write_text('{"glibc": "2.35"}')
        (image / "lib" / "code.py").write_text("x = 1\n")
        (image / "pyvenv.cfg").write_text("home = /somewhere\n")
        (image / "link").symlink_to("lib")
        hashed = [f"{hashlib.sha256((image / name).read_bytes()).hexdigest()}  {name}\n"
                  for name in ("about.json", "lib/code.py")]  # fmt: skip
        (image / "files.sha256").write_text("".join(hashed))
        return image

    return make


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_list_of_files_is_what_sha256sum_reads(copy: Callable[[str], Path]) -> None:
    image = copy(DIGEST)
    subprocess.run(["sha256sum", "--check", "--quiet", "files.sha256"], cwd=image, check=True)
    assert unpacked.damage(image) == []


def test_what_was_changed_removed_or_added_is_found(copy: Callable[[str], Path]) -> None:
    image = copy(DIGEST)
    (image / "lib" / "code.py").write_text("x = 2\n")
    (image / "lib" / "sitecustomize.py").touch()
    (image / "about.json").unlink()
    assert unpacked.damage(image) == ["about.json", "lib/code.py", "lib/sitecustomize.py"]


def test_the_folders_are_those_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    head = (Path(__file__).parents[3] / "tools/one_file/head.sh").read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    named = [str(place).replace(f"-{os.getuid()}", "-$user") for place in unpacked.places()]
    assert named[0] == "/c/rbee-app"
    assert "$cache/rbee-app" in head
    assert f'for place in "$cache" "{named[1]}" "{named[2]}"; do' in head
    for other, home in (("", str(Path.home() / ".cache")), ("relative", str(Path.home() / ".cache"))):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert str(unpacked.places()[0]) == f"{home}/rbee-app"


def test_clean_removes_what_nothing_runs_from(
    place: Path, copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    running, idle = copy(DIGEST), copy(OTHER)
    shutil.copy("/bin/sleep", running / "sleep")
    (place / ".part-999999999").mkdir()
    (place / f".part-{os.getppid()}").mkdir()
    (place / "of the user").mkdir()
    with subprocess.Popen([running / "sleep", "60"]) as process:
        try:
            status, out, _ = run(capsys, "self", "clean", "--json")
        finally:
            process.kill()
    assert status == 0
    done = json.loads(out)
    assert sorted(done["removed"]) == [str(place / ".part-999999999"), str(idle)]
    assert process.pid in done["in_use_by"]
    assert sorted(path.name for path in place.iterdir()) == [f".part-{os.getppid()}", DIGEST, "of the user"]
    assert run(capsys, "self", "clean")[2].startswith("removed 1, 0 MB")


def test_this_copy_goes_with_all_alone(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = copy(DIGEST)
    monkeypatch.setattr(installation, "unpacked", lambda: image)
    assert run(capsys, "self", "clean") == (0, "", "nothing to remove\n")
    assert image.exists()
    assert run(capsys, "self", "clean", "--all")[0] == 0
    assert not image.exists()


def test_check_says_what_this_is_and_fails_for_a_damaged_copy(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = copy(DIGEST)
    status, out, _ = run(capsys, "self", "check", "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["form"], found["file"], found["damaged"]) == ("checkout", None, None)
    assert found["copies"][0]["path"] == str(image)
    monkeypatch.setattr(installation, "unpacked", lambda: image)
    monkeypatch.setattr(sys, "_xoptions", {"rbee_file": "/opt/rbee"})
    status, out, _ = run(capsys, "self", "check")
    assert status == 0
    for words in ("one file", "/opt/rbee", "2.35", "as they were unpacked", "this one"):
        assert words in out
    (image / "lib" / "code.py").unlink()
    status, out, err = run(capsys, "self", "check")
    assert status == 2
    assert "1 files of" in err
    assert "lib/code.py" in err
    assert "rbee self clean --all" in err
