# ruff: noqa: TRY004 - whatever is wrong with a value, its type too, is one kind of error to the caller
"""What may stand in a table of the inventory: each key with the check that turns TOML's value into a Node's field."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rbee.base.durations import parse_duration
from rbee.base.errors import ConfigError
from rbee.base.settings import expand
from rbee.inventory.names import check_host_name, check_user_name, read_target
from rbee.inventory.unsafe_variables import is_unsafe
from rbee.inventory.wheel_indexes import check_wheel_indexes
from rbee_remote.protocol.load_options import BACKENDS, OPTIONS, Adapter, Adapters, Choice, Form, Names, Number, Shares

LOCAL = "local"
ALL = "all"
#: What says how a node is reached; `local` takes none of it, from `[defaults]` neither.
REACH = frozenset({"host", "port", "user", "identity_file", "host_key", "jump"})
#: What decides which programs this machine runs: of `local` only in the inventory of rbee's own home.
OWN_PROGRAMS = ("home", "wheel_indexes")
#: Files on the keeper, from the inventory's folder.
FILES = frozenset({"identity_file", "template"})
#: What a chat template is called. Its text goes to the node, and an inventory, which people share, could name any file.
TEMPLATES = (".jinja", ".jinja2", ".j2")
#: What trusts one machine with something, and therefore stands in that machine's own table and in no other.
TRUST = frozenset({"hub_token"})

#: For how long connections are held after a command.
PERSIST_S = 60.0
MOST_PERSIST_S = 8 * 3600.0

SANDBOX = ("auto", "on", "off")
#: Whether the index of llama-cpp-python's own releases is asked, after those of `wheel_indexes`.
OFFICIAL_INDEX = ("on", "off")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


#: The keys of a table: each with the field that it sets, and what checks its value and raises ValueError.
Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]


def check_key(key: str, keys: Keys, title: str, path: Path) -> None:
    """Raises ConfigError for a key that the table `title` does not have."""
    if key not in keys:
        raise ConfigError(
            f"{path}: [{title}] has an unknown key {key!r}",
            hint=nearest(key, keys) or f"known keys: {', '.join(sorted(keys))}",
            details={"file": str(path), "table": title, "key": key},
        )


def read_value(key: str, value: Any, keys: Keys, title: str, path: Path) -> Any:
    """The checked value of a key that the table has. Raises ConfigError that names file, table and key."""
    try:
        return keys[key][1](value)
    except ValueError as error:
        details = {"file": str(path), "table": title, "key": key}
        raise ConfigError(f"{path}: [{title}] {key}: {error}", details=details) from error


def read_table(table: Any, title: str, path: Path) -> dict[str, Any]:
    """The Node fields that the table `title` sets: keys are Node's field names, values are checked.

    Raises ConfigError that names file, table and key.
    """
    node = title.removeprefix("nodes.") if title != "defaults" else None
    if node is not None:
        _check_node_name(node, title, path)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {title} has to be a table", details={"file": str(path), "table": title})
    fields = {}
    for key, value in table.items():
        where = {"file": str(path), "table": title, "key": key}
        check_key(key, KEYS, title, path)
        if node == LOCAL and key in REACH:
            raise ConfigError(
                f"{path}: [{title}] {key}: {LOCAL!r} is this machine and is reached without SSH",
                hint="give the node another name",
                details=where,
            )
        if key in TRUST and node in (None, LOCAL):
            raise ConfigError(
                f"{path}: [{title}] {key}: this has to be set for each node separately",
                hint=f"{LOCAL!r} needs no {key}: the token is on this machine"
                if node == LOCAL
                else f"put {key} into the table of each node that may have it",
                details=where,
            )
        field = KEYS[key][0]
        fields[field] = read_value(key, value, KEYS, title, path)
        if node == LOCAL and key == "env":
            _check_local_env(fields[field], path, where)
    for field in FILES & fields.keys():
        fields[field] = path.parent.absolute() / fields[field]
    return fields


def read_keeper(defaults: Any, path: Path) -> tuple[dict[str, Any], Any]:
    """What `[defaults]` says of the keeper itself, by Inventory's field names, and the rest of it, about nodes.

    Raises ConfigError.
    """
    if not isinstance(defaults, dict):
        return {}, defaults
    fields = {
        KEEPER_KEYS[key][0]: read_value(key, defaults[key], KEEPER_KEYS, "defaults", path)
        for key in KEEPER_KEYS.keys() & defaults.keys()
    }
    return fields, {key: value for key, value in defaults.items() if key not in KEEPER_KEYS}


def _check_local_env(env: dict[str, str], path: Path, where: dict[str, str]) -> None:
    """Raises ConfigError for a variable that steers what runs on this machine."""
    for name in filter(is_unsafe, env):
        raise ConfigError(
            f"{path}: [{where['table']}] env: {name} decides which code this machine runs or where it writes, "
            "and no inventory may",
            hint="if you mean it, set it in the shell that starts rbee",
            details=where | {"variable": name},
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name that is most like `name`, or ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def check_name(value: Any) -> str:
    """A node's name or a tag: letters, digits, dot, dash and underscore. Raises ValueError."""
    text = check_text(value)
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a valid name: at most 63 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return text


def check_host(value: Any) -> str:
    """A host name, address or alias. Raises ValueError."""
    return check_host_name(check_text(value))


def check_user(value: Any) -> str:
    """A login name. Raises ValueError."""
    return check_user_name(check_text(value))


def check_port(value: Any) -> int:
    """A TCP port. Raises ValueError."""
    return _whole(value, 1, 65535)


def check_backend(value: Any) -> str:
    """Raises ValueError."""
    text = check_text(value)
    if text not in BACKENDS:
        raise ValueError(f"{text!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    return text


def check_home(value: Any) -> str:
    """A folder on the node, absolute or below `~`. Raises ValueError."""
    text = check_text(value)
    if not text.startswith(("/", "~/")) or text.strip("/") in ("", "~") or ".." in text.split("/"):
        raise ValueError(f"{text!r} has to be a folder's absolute path, or begin with '~/', without '..'")
    return text.rstrip("/")


def check_template(value: Any) -> Path:
    """A file with a chat template, which may be missing. Raises ValueError."""
    path = expand(check_text(value))
    if path.suffix not in TEMPLATES:
        raise ValueError(
            f"{str(path)!r} is not a chat template: the file's name has to end with {', '.join(TEMPLATES)}"
        )
    return path


def _check_node_name(name: str, title: str, path: Path) -> None:
    try:
        check_name(name)
        if name == ALL:
            raise ValueError(f"{ALL!r} means every node and cannot be a node's name")
    except ValueError as error:
        raise ConfigError(f"{path}: [{title}]: {error}", details={"file": str(path), "table": title}) from error


def _kind(value: Any) -> str:
    names = {str: "text", bool: "a boolean", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)


def check_text(value: Any) -> str:
    """Text of one line that is not empty. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, got {_kind(value)}")
    if not value.strip():
        raise ValueError("expected some text, got an empty string")
    if _CONTROL.search(value):
        raise ValueError("control characters are not allowed here")
    return value


def _word(value: Any, what: str) -> str:
    """Without white space, and not to be taken for an option by any program it is handed to."""
    text = check_text(value)
    if re.search(r"\s", text) or text.startswith("-"):
        raise ValueError(f"{text!r} is not {what}")
    return text


def _whole(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number, got {_kind(value)}")
    if not low <= value <= high:
        raise ValueError(f"{value} is not between {low} and {high}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {_kind(value)}")
    return value


def _fingerprint(value: Any) -> str:
    text = check_text(value)
    if not _FINGERPRINT.fullmatch(text):
        raise ValueError(f"{text!r} is not a fingerprint: SHA256: followed by 43 letters and digits")
    return text.rstrip("=")


def check_duration(value: Any) -> float:
    """Seconds, negative for never. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'expected a duration such as "5m", got {_kind(value)}')
    return parse_duration(value)


def check_list(value: Any, check: Callable[[Any], str]) -> tuple[str, ...]:
    """Texts, none of them twice. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list of strings, got {_kind(value)}")
    items = tuple(check(item) for item in value)
    if len(set(items)) != len(items):
        raise ValueError("an entry is listed twice")
    return items


def _hop(value: Any) -> str:
    text = check_text(value)
    read_target(text)
    return text


def _jump(value: Any) -> tuple[str, ...]:
    hops = check_list(value, _hop)
    if LOCAL in hops:
        raise ValueError(f"{LOCAL!r} is this machine, which cannot be a jump host")
    return hops


def _persist(value: Any) -> float:
    """Seconds; a holder without an end would outlive every login."""
    seconds = check_duration(value)
    if not 0 <= seconds <= MOST_PERSIST_S:
        raise ValueError('it has to be from "0" to "8h"')
    return float(seconds)


def _choice(choices: tuple[str, ...], what: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        text = check_text(value)
        if text not in choices:
            raise ValueError(f"{text!r} is not a {what}; choose one of {', '.join(choices)}")
        return text

    return check


def _number_or(words: Mapping[str, int], low: int, high: int) -> Callable[[Any], int]:
    """A whole number, or one of the words that stand for one."""

    def check(value: Any) -> int:
        if not words or not isinstance(value, str):
            return _whole(value, low, high)
        if value not in words:
            raise ValueError(f"{value!r} is neither a whole number nor {' or '.join(map(repr, words))}")
        return words[value]

    return check


def _shares(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of numbers, got {_kind(value)}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            raise ValueError(f"expected numbers, got {item!r}" if isinstance(item, str) else "expected numbers")
        if not math.isfinite(item) or item < 0:
            raise ValueError(f"{item} is not a share, which is a number from 0 up")
    if not any(value):
        raise ValueError("at least one share has to be above 0")
    return tuple(float(item) for item in value)


def _adapter(value: Any) -> str:
    """A ref, or the path of a file of this machine."""
    adapter = Adapter.of(check_text(value))
    if adapter.is_ref:
        return adapter.text
    path = expand(adapter.name)
    if not path.is_absolute():
        raise ValueError(f"{adapter.name!r} is neither a ref nor the absolute path of a file of this machine")
    return adapter._replace(name=str(path)).text


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table of strings, got {_kind(value)}")
    for key, item in value.items():
        if not _VARIABLE.fullmatch(key):
            raise ValueError(f"{key!r} is not the name of an environment variable")
        if not isinstance(item, str):
            raise ValueError(f"{key}: expected text in quotes, got {_kind(item)}")
        if "\x00" in item:
            raise ValueError(f"{key}: an environment variable cannot hold a zero byte")
    return dict(value)


def _builder(value: Any) -> str:
    """A node's name, or the address of an index of wheels."""
    return _word(value, "an index") if "://" in check_text(value) else check_name(value)


def _check_of(form: Form) -> Callable[[Any], Any]:
    """The check of a load option."""
    match form:
        case Number(low, high, words):
            return _number_or(words, low, high)
        case Choice(values, what):
            return _choice(values, what)
        case Names(what):
            return lambda value: check_list(value, lambda item: _word(item, what))
        case Shares():
            return _shares
        case Adapters():
            return lambda value: check_list(value, _adapter)


def load_checks() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Of the load options: key -> field of LoadOptions, and the check that makes it."""
    return {name: (name, _check_of(option.form)) for name, option in OPTIONS.items()}


#: TOML key -> field of Node or LoadOptions, and the check that makes it. The checks raise ValueError.
KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "host": ("host", check_host),
    "port": ("port", check_port),
    "user": ("user", check_user),
    "identity_file": ("identity_file", lambda value: expand(check_text(value))),
    "host_key": ("host_key", _fingerprint),
    "jump": ("jump", _jump),
    "tags": ("tags", lambda value: frozenset(check_list(value, check_name))),
    "backend": ("backend", check_backend),
    "builds_from": ("builds_from", lambda value: check_list(value, _builder)),
    "wheel_indexes": ("wheel_indexes", check_wheel_indexes),
    "wheel_index": ("wheel_index", _choice(OFFICIAL_INDEX, "setting of the official index")),
    "home": ("home", check_home),
    "hub_token": ("hub_token", _flag),
    "model": ("model", check_text),
    "template": ("template", check_template),
    "keep_alive": ("keep_alive_s", check_duration),
    "max_workers": ("max_workers", lambda value: _whole(value, 1, 1024)),
    **load_checks(),
    "sandbox": ("sandbox", _choice(SANDBOX, "sandbox mode")),
    "env": ("env", _env),
}

#: Keys of `[defaults]` that are the keeper's and no node's -> field of Inventory, and its check.
KEEPER_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {"persist": ("persist_s", _persist)}
