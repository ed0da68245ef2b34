"""The file of API keys: what is in it, who may touch it, and what two changes at once leave."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError, UsageError
from rbee.gateway.access.keys import ApiKey, add_key, hash_of, new_key, read_keys, revoke_key
from tests.patience import PATIENCE_S

DIGEST = hash_of("rbee-x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def put(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_is_written_and_read_again_and_is_not_in_the_file(path: Path) -> None:
    secret = new_key()
    key = ApiKey("alice", hash_of(secret), frozenset({"a:b", "c"}), 4, 60, "low", "2026-11-01T00:00:00Z")
    add_key(path, key)
    add_key(path, ApiKey("bob", DIGEST))
    assert read_keys(path) == {"alice": key, "bob": ApiKey("bob", DIGEST)}
    assert secret not in path.read_text()
    assert secret.removeprefix("rbee-") not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(each.name for each in path.parent.iterdir()) == [".keys.toml.lock", "keys.toml"]


def test_keys_differ_and_have_256_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(bytes.fromhex(key.removeprefix("rbee-"))) == 32 for key in keys)


def test_comments_stay_and_revoking_leaves_the_others(path: Path) -> None:
    put(path, f'# ours\n[keys.alice]  # of the lab\nsha256 = "{DIGEST}"\n\n[keys."a@b"]\nsha256 = "{DIGEST}"\n')
    add_key(path, ApiKey("carol", DIGEST))
    assert revoke_key(path, "a@b").name == "a@b"
    assert list(read_keys(path)) == ["alice", "carol"]
    assert path.read_text().startswith("# ours\n[keys.alice]  # of the lab\n")
    for name in ("alice", "carol"):
        revoke_key(path, name)
    assert read_keys(path) == {}


def test_a_name_is_taken_once_and_one_that_is_not_there_is_not_revoked(path: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        revoke_key(path, "alice")
    add_key(path, ApiKey("alice", DIGEST))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="'alice' already") as error:
        add_key(path, ApiKey("alice", hash_of("other")))
    assert error.value.hint == "`rbee keys revoke alice` ends it"
    with pytest.raises(UsageError, match="no API key 'alcie'") as error:
        revoke_key(path, "alcie")
    assert error.value.hint == "did you mean 'alice'?"
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "-a", "ä", "a" * 65, 'a"', "[a]", "a/b"])
def test_names_that_a_log_could_not_bear_are_refused(path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name"):
        add_key(path, ApiKey(name, DIGEST))
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "there is 'x'"),
        ("keys = 1", "there is 'keys'"),
        ("[keys]\na = 1", r"\[keys.a\] is no key"),
        ("[keys.a]", "sha256 of"),
        (f'[keys.a]\nsha256 = "{DIGEST.upper()}"', "sha256 of"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nrmp = 3', "has no 'rmp'"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nrpm = 0', "rpm of .* is 0"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nrpm = true', "rpm of"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nconcurrency = "4"', "concurrency of"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\nmodels = "m"', "models of"),
        (f'[keys.a]\nsha256 = "{DIGEST}"\npriority = "urgent"', "priority of .* is 'urgent'"),
        ("[keys.a", "Expected ']'"),
        ("\udcff", "utf-8"),
    ],
)
def test_what_is_wrong_is_named(path: Path, text: str, message: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        read_keys(path)
    with pytest.raises(ConfigError, match=message):
        add_key(path, ApiKey("alice", DIGEST))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_that_others_can_read_or_write_is_not_used(path: Path, mode: int) -> None:
    put(path, f'[keys.a]\nsha256 = "{DIGEST}"\n', mode)
    with pytest.raises(ConfigError, match="is not used") as error:
        read_keys(path)
    assert error.value.hint.startswith("chmod ")


@pytest.mark.skipif(os.getuid() != 0, reason="giving a file away takes root")
def test_a_file_of_somebody_else_is_not_used(path: Path) -> None:
    os.chown(put(path, f'[keys.a]\nsha256 = "{DIGEST}"\n'), 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to"):
        read_keys(path)


def test_two_at_once_lose_nothing(path: Path) -> None:
    """Processes, as they would be."""
    program = (
        "import sys; from pathlib import Path; from rbee.gateway.access.keys import *\n"
        "for number in range(4): add_key(Path(sys.argv[1]), ApiKey(f'{sys.argv[2]}{number}', hash_of('x')))"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, path, name]) for name in "abc"]
    assert [each.wait(PATIENCE_S) for each in running] == [0, 0, 0]
    assert set(read_keys(path)) == {f"{name}{number}" for name in "abc" for number in range(4)}


def test_a_full_disk_is_told_from_a_folder_of_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left") as caught:
        add_key(path, ApiKey("alice", DIGEST))
    assert caught.value.hint == f"make room: df -h {path.parent}"


def test_a_folder_that_cannot_be_written_is_said(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the file of API keys"):
        add_key(Path("/sys/keys.toml"), ApiKey("alice", DIGEST))
