"""The inventory: which nodes there are. TOML in, frozen values out; `edit` writes.

Rules
- A value that leaves this module is valid; nobody checks it again.
- Every key of a node, but for those of `schema.TRUST`, can stand in `[defaults]`; `_merge` is the one place where
  defaults apply.
- `local`, this machine, is always there; `[nodes.local]` may set everything but how it is reached, and no variable that
  decides which code runs here; its `home` and its `wheel_indexes` stand in the inventory of rbee's home alone, for the
  same reason. Where `[defaults]` has such a variable, or one of these in another inventory, it is for the other nodes.
- The current folder decides nothing: an `inventory.toml` there counts only where the user names it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rbee.base import trusted_files
from rbee.base.errors import ConfigError, UsageError
from rbee.base.settings import Settings
from rbee.inventory.aliases import ModelAlias, read_aliases
from rbee.inventory.schema import ALL, OWN_PROGRAMS, PERSIST_S, REACH, nearest, read_keeper, read_table
from rbee.inventory.schema import LOCAL as LOCAL
from rbee.inventory.unsafe_variables import is_unsafe
from rbee.inventory.wheel_indexes import WheelIndex as WheelIndex
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.load_options import OPTIONS


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that runs models.

    host None: this machine, without SSH. port and user None: what ~/.ssh/config says, else 22 and the own name.
    host_key: "SHA256:…", None where known_hosts decides. home: None for ~/.rbee/node, else absolute or ~-relative, on
    the node. keep_alive_s: seconds, negative for never. builds_from: nodes whose builds of llama.cpp may run here too.
    wheel_indexes: where it is fetched, in turn, before it is built; then from llama-cpp-python's own releases, where
    wheel_index is "on".
    hub_token: it may have the user's hub token, for models that the hub does not give to everybody.
    template: a file with the chat template to use in place of the model's own, on the keeper.
    load: how models are loaded; rbee chooses what it does not say.
    sandbox: how workers that are started from now on keep themselves from the rest of the node: auto, on or off.
    """

    name: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    identity_file: Path | None = None
    host_key: str | None = None
    jump: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    backend: str = "auto"
    builds_from: tuple[str, ...] = ()
    wheel_indexes: tuple[WheelIndex, ...] = ()
    wheel_index: str = "on"
    home: str | None = None
    hub_token: bool = False
    model: str | None = None
    template: Path | None = None
    keep_alive_s: float = 300.0
    max_workers: int | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    sandbox: str = "auto"
    env: dict[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return self.host is None


@dataclass(frozen=True, slots=True)
class Inventory:
    """nodes: by name, in the file's order, `local` last unless the file names it. path: None for no file.
    models: aliases by name, in the file's order."""

    nodes: dict[str, Node]
    path: Path | None = None
    models: dict[str, ModelAlias] = field(default_factory=dict)
    #: For how long connections are held after a command, seconds; 0 for not at all.
    persist_s: float = PERSIST_S

    def node(self, name: str) -> Node:
        """Raises UsageError with the nearest name."""
        if name in self.nodes:
            return self.nodes[name]
        where = self.path or "the inventory (no file was found)"
        raise UsageError(
            f"no node {name!r} in {where}", hint=nearest(name, self.nodes) or "`rbee nodes list` shows the nodes"
        )

    def alias(self, model: str | None) -> ModelAlias | None:
        """The alias of this name, if it is one."""
        return self.models.get(model) if model else None

    def select(self, selector: str | None) -> tuple[Node, ...]:
        """The nodes that `--node` means: a name, "@tag", "all", or None for all. Raises UsageError for none."""
        if selector is None or selector == ALL:
            return tuple(self.nodes.values())
        if not selector.startswith("@"):
            return (self.node(selector),)
        found = tuple(node for node in self.nodes.values() if selector[1:] in node.tags)
        if not found:
            tags = sorted({tag for node in self.nodes.values() for tag in node.tags})
            raise UsageError(
                f"no node has the tag {selector[1:]!r}",
                hint=nearest(selector[1:], tags) or f"tags in use: {', '.join(tags) or 'none'}",
            )
        return found

    def among(self, selectors: tuple[str, ...]) -> tuple[Node, ...]:
        """The nodes that any of them means, in the inventory's order; all where there are none. Raises UsageError."""
        found = {node.name for selector in selectors for node in self.select(selector)}
        return tuple(node for node in self.nodes.values() if not selectors or node.name in found)


TABLES = ("defaults", "nodes", "models")
#: For errors about the file.
WHAT = "the inventory"
#: What an inventory is called, in rbee's home; elsewhere it has to be named.
FILE_NAME = "inventory.toml"


def find(path: Path | None, settings: Settings) -> Path | None:
    """The inventory's file: `path`, `$RBEE_INVENTORY`, `inventory.toml` in rbee's home; or None."""
    for named in (path, settings.inventory_override):
        if named is not None:
            return named
    return settings.inventory_path if settings.inventory_path.exists() else None


def lies_about_unused(path: Path | None, settings: Settings, folder: Path = Path()) -> bool:
    """Whether `folder`, the current one, has an inventory that nobody named, and that is not the one in rbee's home."""
    if path is not None or settings.inventory_override is not None:
        return False
    try:
        here = (folder / FILE_NAME).stat()
    except OSError:
        return False
    try:
        return not os.path.samestat(here, settings.inventory_path.stat())
    except OSError:
        return True


def load(path: Path | None = None, settings: Settings | None = None) -> Inventory:
    """The inventory at `path`, or the one that `find` finds; only `local` where there is none.

    Raises ConfigError that names file, table and key (for syntax errors: the line), or who else can write the file.
    """
    settings = settings or Settings.from_environment()
    found = find(path, settings)
    if found is None:
        return _at_home(Inventory({LOCAL: Node(LOCAL)}), settings, is_own=True)
    try:
        content = trusted_files.read(found, WHAT)
    except FileNotFoundError as error:
        raise ConfigError(f"no inventory at {found}", hint="`rbee nodes add` makes one") from error
    except OSError as error:
        raise ConfigError(f"cannot read the inventory {found}: {error.strerror}") from error
    is_own = _is_own(found, settings)
    return _at_home(parse(content, found, is_own=is_own), settings, is_own=is_own)


def _is_own(path: Path, settings: Settings) -> bool:
    """Whether this is the inventory of rbee's home, under whatever name it was found."""
    try:
        return os.path.samestat(path.stat(), settings.inventory_path.stat())
    except OSError:
        return False


def _at_home(inventory: Inventory, settings: Settings, *, is_own: bool) -> Inventory:
    """The node `local` lives in rbee's own home, which `$RBEE_HOME` may have moved, unless the file says otherwise.

    is_own: the file lies in rbee's home. Any other says nothing of where this machine's programs are: it may have come
    with folders that hold some. Raises ConfigError.
    """
    local = inventory.nodes[LOCAL]
    for key in OWN_PROGRAMS if not is_own else ():
        if getattr(local, key):
            raise ConfigError(
                f"{inventory.path}: [nodes.{LOCAL}] {key} decides which programs this machine runs, "
                "and only the inventory in rbee's home may",
                hint=f"write it into {settings.inventory_path}{', or set RBEE_HOME' if key == 'home' else ''}",
                details={"file": str(inventory.path), "table": f"nodes.{LOCAL}", "key": key},
            )
    home = local.home or str(settings.home / "node")
    return replace(inventory, nodes={**inventory.nodes, LOCAL: replace(local, home=home)})


def parse(content: bytes, path: Path, *, is_own: bool = True) -> Inventory:
    """The inventory in `content`; `path` names it in errors and is where relative files are looked for.

    is_own: it lies in rbee's home. In any other, `home` and `wheel_indexes` of [defaults] are not for this machine.
    """
    data = _parse_toml(content, path)
    for key in data:
        if key not in TABLES:
            raise ConfigError(
                f"{path}: unknown table or key {key!r}",
                hint=nearest(key, TABLES) or "an inventory has [defaults], [nodes.NAME] and [models.NAME]",
                details={"file": str(path), "key": key},
            )
    keeper, of_nodes = read_keeper(data.get("defaults", {}), path)
    defaults = read_table(of_nodes, "defaults", path)
    tables = data.get("nodes", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: nodes has to be a table of tables, one [nodes.NAME] each")
    own = {name: read_table(table, f"nodes.{name}", path) for name, table in tables.items()}
    nodes = {name: _merge(name, defaults, fields, is_own=is_own) for name, fields in own.items()}
    nodes.setdefault(LOCAL, _merge(LOCAL, defaults, {}, is_own=is_own))
    _check_jumps(nodes, path)
    tags = {name: node.tags for name, node in nodes.items()}
    return Inventory(nodes, path, read_aliases(data.get("models", {}), tags, path), **keeper)


def _parse_toml(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: the file is not UTF-8", details={"file": str(path), "line": line}
        ) from error
    except tomllib.TOMLDecodeError as error:
        match = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line = int(match[1]) if match else content.count(b"\n") + 1
        text = str(error)[: match.start()] if match else str(error).removesuffix(" (at end of document)")
        title = re.match(r"\s*\[models\.([\w.-]*[:/][\w.:/-]*)\]", content.decode().split("\n")[line - 1])
        if title:
            text = f'a name with a colon or a slash in it stands in quotes: [models."{title[1]}"]'
        raise ConfigError(
            f"{path}, line {line}: {text[:1].lower()}{text[1:]}", details={"file": str(path), "line": line}
        ) from error


def _merge(name: str, defaults: Mapping[str, Any], own: Mapping[str, Any], *, is_own: bool) -> Node:
    """A node from its own fields over the defaults; `env` is merged variable by variable. is_own: as for `parse`."""
    if name == LOCAL:
        others = REACH if is_own else REACH | set(OWN_PROGRAMS)
        defaults = {key: value for key, value in defaults.items() if key not in others}
    fields = {**defaults, **own}
    if name != LOCAL:
        fields.setdefault("host", name)  # as ssh does: the name may be an alias, or resolve by itself
    common = defaults.get("env", {})
    if name == LOCAL:
        common = {variable: value for variable, value in common.items() if not is_unsafe(variable)}
    fields["env"] = {**common, **own.get("env", {})}
    load = LoadOptions(**{key: fields.pop(key) for key in OPTIONS if key in fields})
    return Node(name=name, load=load, **fields)


def _check_jumps(nodes: Mapping[str, Node], path: Path) -> None:
    """A hop that leads back to where it started could never connect. Raises ConfigError."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            raise ConfigError(
                f"{path}: [nodes.{trail[0]}] the jump hosts form a loop: {circle}",
                details={"file": str(path), "table": f"nodes.{trail[0]}", "key": "jump"},
            )
        if name in done or name not in nodes:
            return
        for hop in nodes[name].jump:
            visit(hop, (*trail, name))
        done.add(name)

    for name in nodes:
        visit(name, ())
