"""Where the keeper keeps its files: `$RBEE_HOME`, or `~/.rbee`.

Rules
- Nothing is made by looking: folders and files appear when something is written into them.
- Everything made here is the user's alone: folders 0700, files 0600. A home that somebody else can write is not used.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import ConfigError

#: For errors about who else can write it.
_HOME = "rbee's home"


@dataclass(frozen=True, slots=True)
class Settings:
    """home: absolute. inventory_override: what `$RBEE_INVENTORY` names, None where it is not set."""

    home: Path
    inventory_override: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Raises ConfigError where neither RBEE_HOME nor a home folder is known."""
        env = os.environ if environ is None else environ
        chosen = env.get("RBEE_HOME")
        try:
            home = expand(chosen, env).absolute() if chosen else user_home(env) / ".rbee"
        except FileNotFoundError as error:
            raise ConfigError(
                f"RBEE_HOME is {chosen}, in a folder that is gone", hint="`cd` to one that is there"
            ) from error
        inventory = env.get("RBEE_INVENTORY")
        return cls(home=home, inventory_override=expand(inventory, env) if inventory else None)

    @property
    def inventory_path(self) -> Path:
        return self.home / "inventory.toml"

    @property
    def registry_path(self) -> Path:
        return self.home / "workers.db"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def log_file(self) -> Path:
        return self.log / "rbee.log"


def user_home(environ: Mapping[str, str] | None = None) -> Path:
    """$HOME, else what the user database says: cron and `env -i` set no HOME. Raises ConfigError for neither."""
    home = (os.environ if environ is None else environ).get("HOME")
    if home:
        return Path(home).absolute()
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError as error:
        raise ConfigError(
            f"HOME is not set and user {os.getuid()} has no entry in the user database",
            hint="set RBEE_HOME to a folder that rbee may use",
        ) from error


def expand(path: str, environ: Mapping[str, str] | None = None) -> Path:
    """`path` with a leading `~/` replaced by the user's home folder. Raises ConfigError as `user_home` does."""
    if path == "~" or path.startswith("~/"):
        return user_home(environ) / path[2:]
    return Path(path)


def check_home(settings: Settings) -> None:
    """See that nobody else decides what lies in rbee's home, which may be missing. Raises ConfigError."""
    trusted_files.check(settings.home, _HOME)


def make_private_folder(path: Path) -> None:
    """Make `path` and its parents, `path` itself 0700; nobody else may be able to write one that is there.

    Raises ConfigError for a folder that somebody else can write, and when it cannot be made.
    """
    try:
        _make_private_folder(path)
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {path}: {error.strerror}", hint="set RBEE_HOME to a folder that rbee may use"
        ) from error


def _make_private_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        trusted_files.check_entry(path, "the folder")
    except FileNotFoundError:
        for parent in reversed(path.parents):
            if not parent.exists():
                parent.mkdir(mode=0o755, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        trusted_files.check(path, "the folder")  # somebody may have been faster, in a folder that all can write


def keeper_id(settings: Settings) -> str:
    """This keeper's id, 16 hex digits, made at the first call; of several first calls at once, one wins.

    Raises ConfigError when it can neither be read nor written.
    """
    path = settings.home / "keeper-id"
    try:
        return _read_keeper_id(path)
    except FileNotFoundError:
        make_private_folder(settings.home)
    draft = path.with_name(f"keeper-id.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(secrets.token_hex(8) + "\n")
        try:
            path.hardlink_to(draft)  # fails where another process was first, and never shows a half-written file
        except FileExistsError:
            return _read_keeper_id(path)
        return _read_keeper_id(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _read_keeper_id(path: Path) -> str:
    trusted_files.check_entry(path, "the keeper's id")
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not re.fullmatch(r"[0-9a-f]{16}", text):
        raise ConfigError(f"{path} holds no keeper id (16 hex digits)", hint="remove the file: rbee makes another")
    return text
