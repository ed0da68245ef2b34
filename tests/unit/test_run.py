"""A run of the tests has nothing of the user's in reach."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from rbee.base.settings import Settings
from rbee.setup.wheels.cache import WheelCache
from tests.testbed import assets, run
from tests.testbed.cli import Rbee


def test_whatever_looks_for_a_folder_of_the_users_finds_one_of_the_run() -> None:
    own = run.folder()
    assert own is not None
    settings = Settings.from_environment()
    places = [Path.home(), settings.home, WheelCache.of(settings).root, Path(os.environ["XDG_RUNTIME_DIR"])]
    assert [place for place in places if own not in place.parents] == []
    assert Path.home() != Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert [name for name in ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "HF_TOKEN") if name in os.environ] == []


def test_a_command_under_test_gets_nothing_of_them_either(tmp_path: Path) -> None:
    environment = Rbee(tmp_path / "keeper", tmp_path / "run").environment()
    users = {str(Path(pwd.getpwuid(os.getuid()).pw_dir) / name) for name in ("", ".rbee", ".cache/pip", ".rustup")}
    assert {environment[name] for name in ("HOME", "RBEE_HOME", "PIP_CACHE_DIR", "RUSTUP_HOME")} & users == set()


def test_the_runs_wheels_are_copies_without_locks_and_what_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "users"
    for name in ("base-0/some.whl", "llama/cpu-1/wheel.json", "llama/cuda-1/wheel.json", ".staging-0/x", "build.lock"):
        (users / name).parent.mkdir(parents=True, exist_ok=True)
        (users / name).write_text(name)
    before = {path: path.lstat() for path in users.rglob("*")}
    monkeypatch.setenv("TESTBED_FOLDER", str(tmp_path))
    monkeypatch.setenv("TESTBED_USER_WHEELS", str(users))
    made = assets.wheel_cache()
    assert made == tmp_path / "wheels"
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == [
        "base-0/some.whl",
        "llama/cpu-1/wheel.json",
    ]
    (made / "base-0/some.whl").write_text("changed")
    assert (users / "base-0/some.whl").read_text() == "base-0/some.whl"
    after = {path: path.lstat() for path in users.rglob("*")}
    assert {path: (s.st_ino, s.st_ctime, s.st_mtime) for path, s in after.items()} == {
        path: (s.st_ino, s.st_ctime, s.st_mtime) for path, s in before.items()
    }


def test_what_a_test_sets_of_the_environment_is_not_there_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "1")
    monkeypatch.setenv("GONE", "2")
    before = dict(os.environ)
    with run.kept_environment():
        os.environ |= {"THERE": "3", "NEW": "4"}
        del os.environ["GONE"]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("path", "kept"),
    [("/x/shims:/y/shims:/usr/bin", f"{sys.base_prefix}/bin:/usr/bin"), ("/usr/bin:/bin", "/usr/bin:/bin")],
)
def test_stand_ins_of_a_version_manager_are_out_of_reach(path: str, kept: str) -> None:
    assert run.without_shims(path) == kept
