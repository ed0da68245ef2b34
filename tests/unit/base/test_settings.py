"""Where the keeper's files lie, and its id."""

from __future__ import annotations

import os
import pwd
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.base.settings import Settings, keeper_id


def test_rbee_home_wins_over_home() -> None:
    settings = Settings.from_environment({"RBEE_HOME": "/srv/rbee", "HOME": "/home/bee"})
    assert settings.home == Path("/srv/rbee")
    assert settings.registry_path == Path("/srv/rbee/workers.db")


def test_without_it_everything_is_below_the_home_folder() -> None:
    assert Settings.from_environment({"HOME": "/home/bee"}).inventory_path == Path("/home/bee/.rbee/inventory.toml")


def test_a_tilde_in_rbee_home_is_the_home_folder() -> None:
    assert Settings.from_environment({"HOME": "/home/bee", "RBEE_HOME": "~/x"}).home == Path("/home/bee/x")


def test_without_home_the_user_database_is_asked() -> None:
    expected = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".rbee"
    assert Settings.from_environment({}).home == expected


def test_the_keeper_id_is_made_once_and_is_the_users_alone(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "home")
    first = keeper_id(settings)
    assert len(bytes.fromhex(first)) == 8
    assert keeper_id(settings) == first
    assert stat.S_IMODE((settings.home / "keeper-id").stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700


def test_of_many_first_calls_one_wins(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "home")
    with ThreadPoolExecutor(20) as pool:
        ids = list(pool.map(lambda _: keeper_id(settings), range(40)))
    assert len(set(ids)) == 1
    assert [path.name for path in settings.home.iterdir()] == ["keeper-id"]


def test_a_keeper_id_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keeper-id").write_text("hello\n")
    with pytest.raises(ConfigError, match="keeper id"):
        keeper_id(Settings(tmp_path))


def test_a_home_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        keeper_id(Settings(tmp_path / "file" / "home"))
    assert "RBEE_HOME" in caught.value.hint or "cannot read" in caught.value.message
