# ruff: noqa: TRY004 - whatever is wrong with a value, its type too, is one kind of error to the caller
"""`[models.NAME]` of the inventory: a model under a name of the user's own, for the gateway and for `--model`."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbee.base.errors import ConfigError
from rbee.inventory.schema import (
    ALL,
    check_duration,
    check_key,
    check_list,
    check_text,
    load_checks,
    nearest,
    read_value,
)
from rbee_remote.protocol import LoadOptions, Sampling
from rbee_remote.protocol.limits import SAMPLING
from rbee_remote.protocol.load_options import OPTIONS

#: Clients have names such as gpt-4o, qwen3:8b and meta-llama/llama-3.1-8b built in, so all of these can be one.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
#: What a model ref of another form than a name begins with.
_SCHEMES = ("hf", "file", "http", "https")
#: How many characters a system prompt can have: some 16,000 tokens, more than most contexts hold beside a question.
_LONGEST_SYSTEM = 65_536


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """model: a ref as the user wrote it. nodes: names and "@tag"s that may serve it, empty for all. load: how it is
    loaded; what it does not say is the node's. system: a system prompt for requests that bring none, "" for none.
    sampling: values for fields that a request's body leaves out, by their names there. fallbacks: names asked in turn
    where this one cannot be served. keep_alive_s: seconds, negative for never, None for the node's.
    """

    name: str
    model: str
    nodes: tuple[str, ...] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    system: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    keep_alive_s: float | None = None


def read_aliases(tables: Any, tags: Mapping[str, frozenset[str]], path: Path) -> dict[str, ModelAlias]:
    """The aliases of `[models]`, in the file's order. tags: of each node, by its name.

    Raises ConfigError that names file, table and key.
    """
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: models has to be a table of tables, one [models.NAME] each")
    aliases = {name: _read_alias(name, table, path) for name, table in tables.items()}
    for alias in aliases.values():
        _check_nodes(alias, tags, path)
    _check_fallbacks(aliases, path)
    return aliases


def _read_alias(name: str, table: Any, path: Path) -> ModelAlias:
    title = f"models.{name}"
    try:
        _check_name(name)
        if not isinstance(table, dict):
            raise ValueError("this has to be a table")
        for key, value in table.items():
            if isinstance(value, dict) and key not in ALIAS_KEYS:
                raise ValueError(f'a name with a dot in it stands in quotes: [models."{name}.{key}"]')
        if "model" not in table:
            raise ValueError('there is no model; write model = "smollm2:135m", or another ref')
    except ValueError as error:
        raise ConfigError(f"{path}: [{title}]: {error}", details={"file": str(path), "table": title}) from error
    fields: dict[str, Any] = {}
    for key, value in table.items():
        check_key(key, ALIAS_KEYS, title, path)
        fields[ALIAS_KEYS[key][0]] = read_value(key, value, ALIAS_KEYS, title, path)
    load = LoadOptions(**{key: fields.pop(key) for key in OPTIONS if key in fields})
    return ModelAlias(name=name, load=load, **fields)


def _check_name(name: str) -> None:
    """Raises ValueError for a name that could be taken for a ref, or for a name with a node behind it."""
    if name.partition(":")[0].lower() in _SCHEMES and ":" in name:
        raise ValueError(f"{name!r} reads as a model ref, and cannot be the name of another model")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid name: at most 128 letters, digits, '.', '_', '-', ':' and '/', "
            "the first a letter or digit"
        )


def _check_nodes(alias: ModelAlias, tags: Mapping[str, frozenset[str]], path: Path) -> None:
    """Raises ConfigError for a node or tag that no node has."""
    known = [*tags, *(f"@{tag}" for tag in sorted(set().union(*tags.values())))]
    for node in alias.nodes:
        if node not in known:
            what = f"no node has the tag {node[1:]!r}" if node.startswith("@") else f"there is no node {node!r}"
            raise ConfigError(
                f"{path}: [models.{alias.name}] nodes: {what}",
                hint=nearest(node, known) or f"nodes and tags: {', '.join(known)}",
                details={"file": str(path), "table": f"models.{alias.name}", "key": "nodes"},
            )


def _check_fallbacks(aliases: Mapping[str, ModelAlias], path: Path) -> None:
    """Raises ConfigError for an alias that is none, and for a way that leads back to where it began.

    What has a colon may be a ref: which there are is not known here.
    """
    for alias in aliases.values():
        for each in alias.fallbacks:
            if each not in aliases and ":" not in each:
                hint = nearest(each, aliases) or "a fallback is another alias, or a model ref such as smollm2:135m"
                raise _wrong_fallback(alias.name, f"there is no [models.{each}]", hint, path)
    from graphlib import CycleError, TopologicalSorter  # every `infer` reads the inventory

    try:
        TopologicalSorter({alias.name: alias.fallbacks for alias in aliases.values()}).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # it names each after the one that leads to it
        message = f"they lead round in a circle: {' -> '.join(circle)}"
        raise _wrong_fallback(circle[0], message, "take one of them out", path) from error


def _wrong_fallback(name: str, what: str, hint: str, path: Path) -> ConfigError:
    where = {"file": str(path), "table": f"models.{name}", "key": "fallbacks"}
    return ConfigError(f"{path}: [models.{name}] fallbacks: {what}", hint=hint, details=where)


def _node(value: Any) -> str:
    text = check_text(value)
    if text in (ALL, f"@{ALL}"):
        raise ValueError("leave this out for all nodes")
    return text


def _system(value: Any) -> str:
    """Text of several lines."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected some text in quotes")
    if len(value) > _LONGEST_SYSTEM:
        raise ValueError(f"{len(value):,} characters are more than the {_LONGEST_SYSTEM:,} that are taken")
    if "\x00" in value:
        raise ValueError("a zero character is not allowed here")
    return value


def _sampling(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected a table, such as { temperature = 0.2 }")
    kinds = typing.get_type_hints(Sampling)
    for name, number in value.items():
        if name not in SAMPLING_KEYS:
            near = nearest(name, SAMPLING_KEYS)
            raise ValueError(f"{name!r} is no sampling field; {near or 'known are ' + ', '.join(SAMPLING_KEYS)}")
        low, high = SAMPLING[name]
        is_whole = float not in (kinds[name], *typing.get_args(kinds[name]))
        if isinstance(number, bool) or not isinstance(number, int if is_whole else (int, float)):
            raise ValueError(f"{name}: expected {'a whole number' if is_whole else 'a number'}, got {number!r}")
        if not low <= number <= high:  # NaN is not, either
            raise ValueError(f"{name}: {number} is not between {low:g} and {high:g}")
    return dict(value)


#: What `sampling` may set, by the names in an OpenAI body. There logprobs is a yes or no, and says nothing of sampling.
SAMPLING_KEYS = tuple(name for name in SAMPLING if name != "logprobs")

#: TOML key -> field of ModelAlias or LoadOptions, and the check that makes it. The checks raise ValueError.
ALIAS_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("model", check_text),
    "nodes": ("nodes", lambda value: check_list(value, _node)),
    "system": ("system", _system),
    "sampling": ("sampling", _sampling),
    "fallbacks": ("fallbacks", lambda value: check_list(value, check_text)),
    "keep_alive": ("keep_alive_s", check_duration),
    **load_checks(),
}
