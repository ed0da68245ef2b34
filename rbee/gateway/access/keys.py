"""API keys of the gateway: the file that they are kept in, made, read and changed.

Rules
- A key is shown once, when it is made. The file holds its SHA-256: a key has 256 random bits, which nobody guesses
  however fast the hash is. bcrypt and its like make passwords that people choose expensive to guess, and would make
  each request, and each wrong key, cost a tenth of a second.
- The file is TOML, as the inventory is, and comments that a person writes into it stay.
- It is its user's alone (0600). One that others can read or write, or that belongs to somebody else, is not used.
- A change reads the file, changes it and puts the whole in its place, under a lock: two at once lose nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbee.base import trusted_files
from rbee.base.errors import ConfigError, UsageError
from rbee.base.settings import Settings, make_private_folder

if TYPE_CHECKING:
    from tomlkit import TOMLDocument
    from tomlkit.items import Table

#: What every key begins with, so that programs that look for secrets in files know one.
PREFIX = "rbee-"
#: Random bytes of a key.
KEY_BYTES = 32
#: Digits of a key's SHA-256 that stand for it where it must not be shown.
FINGERPRINT_DIGITS = 12
#: What a key's requests count in the queue: higher is served first.
PRIORITIES = {"low": -1, "normal": 0, "high": 1}
#: Requests of one key that are open at once, and within a minute.
MOST_CONCURRENCY, MOST_RPM = 10_000, 60_000
#: Bytes of the file: some ten thousand keys.
MOST_BYTES = 4 * 2**20

#: Seconds that a change waits for others, each of which takes a millisecond.
LOCK_S = 10.0

#: For errors about who else can read or write it.
WHAT = "the file of API keys"
_HEAD = "# API keys of `rbee serve`, by name. sha256 is the key's; the key itself was shown when it was made.\n\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_FIELDS = {"sha256", "models", "concurrency", "rpm", "priority", "added"}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """sha256: lower-case hex of the key. models: names it may use, empty for all. concurrency, rpm: how many of its
    requests may be open at once, and begin within a minute; None for any number. added: ISO 8601, UTC, "" for unknown.
    """

    name: str
    sha256: str
    models: frozenset[str] = frozenset()
    concurrency: int | None = None
    rpm: int | None = None
    priority: str = "normal"
    added: str = ""

    @property
    def fingerprint(self) -> str:
        return self.sha256[:FINGERPRINT_DIGITS]


def default_path(settings: Settings) -> Path:
    return settings.home / "keys.toml"


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys by name, in the file's order. Raises ConfigError for a file that is missing, wrong, or not private."""
    return _parse(_content(path), path)


def add_key(path: Path, key: ApiKey) -> None:
    """Write a key down. Raises UsageError for a name that is taken or cannot be one, ConfigError as `read_keys`."""
    _check_name(key.name)
    with _changing(path) as (document, keys):
        if key.name in keys:
            raise UsageError(f"there is an API key {key.name!r} already", hint=f"`rbee keys revoke {key.name}` ends it")
        _tables(document).append(key.name, _table(key))


def revoke_key(path: Path, name: str) -> ApiKey:
    """Remove a key; what it was. Raises UsageError where there is none of the name, ConfigError as `read_keys`."""
    from rbee.inventory.schema import nearest

    if not path.exists():
        raise UsageError(f"no API key {name!r}: there is no {path}", hint="`rbee keys add NAME` makes one")
    with _changing(path) as (document, keys):
        if name not in keys:
            hint = nearest(name, keys) or "`rbee keys list` shows the keys"
            raise UsageError(f"no API key {name!r} in {path}", hint=hint)
        del _tables(document)[name]
        return keys[name]


def new_key() -> str:
    return PREFIX + secrets.token_hex(KEY_BYTES)


# --- reading ----------------------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    try:
        content = trusted_files.read(path, WHAT)
        status = path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"no {path}, which is to hold API keys", hint="`rbee keys add NAME` makes one") from error
    except OSError as error:
        raise ConfigError(f"cannot read {WHAT} {path}: {error.strerror}") from error
    if trusted_files.is_exposed(status, os.getuid()):
        raise ConfigError(f"{WHAT} {path} is not used: others can read it", hint=f"chmod 600 {path}")
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{WHAT} {path} is larger than {MOST_BYTES} bytes")
    return content


def _parse(content: bytes, path: Path) -> dict[str, ApiKey]:
    try:
        data = tomllib.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", details={"file": str(path)}) from error
    tables = data.pop("keys", {})
    if data or not isinstance(tables, dict):
        raise _wrong(path, f"there is {next(iter(data), 'keys')!r}", "it holds tables [keys.NAME] and nothing else")
    return {name: _read_key(path, name, table) for name, table in tables.items()}


def _read_key(path: Path, name: str, table: Any) -> ApiKey:
    where = f"keys.{name}"
    if not _NAME.fullmatch(name) or not isinstance(table, dict):
        raise _wrong(path, f"[{where}] is no key", "write [keys.NAME], with a sha256 in it")
    if unknown := sorted(set(table) - _FIELDS):
        raise _wrong(path, f"[{where}] has no {unknown[0]!r}", f"there are {', '.join(sorted(_FIELDS))}")
    digest, models, priority = table.get("sha256"), table.get("models", []), table.get("priority", "normal")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise _wrong(path, f"the sha256 of [{where}] is not 64 hex digits", "`rbee keys add NAME` makes a key")
    if not isinstance(models, list) or not all(isinstance(model, str) and model for model in models):
        raise _wrong(path, f"models of [{where}] is not a list of names", 'write models = ["smollm2:135m"]')
    if priority not in PRIORITIES:
        raise _wrong(path, f"priority of [{where}] is {priority!r}", f"there are {', '.join(PRIORITIES)}")
    return ApiKey(
        name=name,
        sha256=digest,
        models=frozenset(models),
        concurrency=_count(path, where, table, "concurrency", MOST_CONCURRENCY),
        rpm=_count(path, where, table, "rpm", MOST_RPM),
        priority=priority,
        added=str(table.get("added", "")),
    )


def _count(path: Path, where: str, table: Mapping[str, Any], field: str, most: int) -> int | None:
    value = table.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _wrong(path, f"{field} of [{where}] is {value!r}", f"write a number from 1 to {most}")
    return value


def _wrong(path: Path, what: str, hint: str) -> ConfigError:
    return ConfigError(f"{path}: {what}", hint=hint, details={"file": str(path)})


# --- changing ---------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name an API key", hint='take up to 64 letters, digits, ".", "_", "@" and "-"'
        )


@contextmanager
def _changing(path: Path) -> Iterator[tuple[TOMLDocument, dict[str, ApiKey]]]:
    """The file as a document and as keys, under the lock; written when the block ends well."""
    import tomlkit

    with _locked(path):
        content = _content(path) if path.exists() else _HEAD.encode()
        keys = _parse(content, path)
        document = tomlkit.parse(content.decode("utf-8-sig"))
        yield document, keys
        changed = document.as_string()
        _parse(changed.encode(), path)  # what cannot be read again is not written
        _write_whole(path, changed)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if not path.parent.exists():
        make_private_folder(path.parent)
    try:
        lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
        lock.acquire(timeout=LOCK_S, poll_interval=0.01)
    except Timeout as error:
        raise ConfigError(f"another rbee is changing {path}", hint="try again in a moment") from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _tables(document: TOMLDocument) -> Table:
    import tomlkit

    if "keys" not in document:
        document.append("keys", tomlkit.table(is_super_table=True))
    tables: Table = document["keys"]  # `_parse` has seen that it is a table
    return tables


def _table(key: ApiKey) -> Table:
    import tomlkit

    table = tomlkit.table()
    fields: dict[str, Any] = {
        "sha256": key.sha256,
        "models": sorted(key.models) or None,
        "concurrency": key.concurrency,
        "rpm": key.rpm,
        "priority": key.priority if key.priority != "normal" else None,
        "added": key.added or None,
    }
    for field, value in fields.items():
        if value is not None:
            table.add(field, value)
    table.add(tomlkit.nl())
    return table


def _write_whole(path: Path, text: str) -> None:
    """Put a file in the place of the one at `path`; a reader sees the one or the other, whole."""
    target = path.resolve()  # a link stays one
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        draft.replace(target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = f"make room: df -h {path.parent}" if is_full else "check that its folder is yours"
    return ConfigError(f"cannot write {WHAT} {path}: {error.strerror}", hint=hint)
