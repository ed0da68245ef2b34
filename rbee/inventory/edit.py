"""Edits of the inventory's file: a node in, a node out; comments, order and the file's mode stay.

Rules
- What is written was read back first: an edit that would not give the nodes it should is refused.
- The file is replaced in one step, under a lock on its folder, so that two edits at once both count.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rbee.base import trusted_files
from rbee.base.durations import format_duration
from rbee.base.errors import ConfigError, UsageError
from rbee.base.settings import make_private_folder
from rbee.inventory import WHAT, Node, parse
from rbee.inventory.schema import LOCAL, nearest

#: Seconds for other edits, which take a moment each.
_LOCK_PATIENCE_S = 10.0
_LOCK_PAUSE_S = 0.02


def add_node(path: Path, node: Node) -> None:
    """Write `node` at the end of the inventory at `path`, made where it is missing.

    Raises UsageError for a name that is taken, ConfigError for a file that cannot be read, is wrong, or not writable.
    """
    import tomlkit

    with _edit(path) as document:
        nodes = document.get("nodes")
        if nodes is None:
            nodes = document["nodes"] = tomlkit.table(is_super_table=True)
        if node.name in nodes:
            raise UsageError(
                f"{path} has a node {node.name!r} already",
                hint=f"choose another name, or `rbee nodes remove {node.name}` first",
            )
        table = tomlkit.table()
        for key, value in toml_keys(node).items():
            table.add(key, _item(value))
        nodes.append(node.name, table)


def remove_node(path: Path, name: str) -> None:
    """Take `[nodes.NAME]` out of the inventory at `path`.

    Raises UsageError where it is not in there, ConfigError as `add_node` does.
    """
    with _edit(path) as document:
        nodes = document.get("nodes", {})
        if name not in nodes:
            builtin = f"{LOCAL!r} is always there" if name == LOCAL else ""
            raise UsageError(f"no node {name!r} in {path}", hint=builtin or nearest(name, nodes))
        del nodes[name]


def toml_keys(node: Node) -> dict[str, Any]:
    """The keys that `node` sets beyond the defaults, as TOML values, in the order of inventory.example.toml."""
    plain = Node(node.name)
    keys: dict[str, Any] = {}
    for key in (
        "host",
        "port",
        "user",
        "identity_file",
        "host_key",
        "jump",
        "tags",
        "backend",
        "home",
        "hub_token",
        "model",
        "template",
    ):
        value = getattr(node, key)
        if value != getattr(plain, key):
            keys[key] = str(value) if isinstance(value, Path) else value
    if "jump" in keys:
        keys["jump"] = list(node.jump)
    if "tags" in keys:
        keys["tags"] = sorted(node.tags)
    if node.keep_alive_s != plain.keep_alive_s:
        keys["keep_alive"] = format_duration(node.keep_alive_s)
    if node.max_workers is not None:
        keys["max_workers"] = node.max_workers
    keys |= {key: value for key, value in node.load.plain().items() if value is not None}
    for key in ("sandbox", "env"):
        if getattr(node, key) != getattr(plain, key):
            keys[key] = getattr(node, key)
    return keys


def _item(value: Any) -> Any:
    import tomlkit

    if not isinstance(value, dict):
        return tomlkit.item(value)
    table = tomlkit.inline_table()
    table.update(value)
    return table


@contextlib.contextmanager
def _edit(path: Path) -> Iterator[Any]:
    """The tomlkit document at `path`; written back at the end of the block. Raises ConfigError."""
    import tomlkit

    target = path.resolve()  # an inventory that is a symbolic link stays one
    if not target.parent.exists():
        make_private_folder(target.parent)
    trusted_files.check(path, WHAT)  # before a lock in a folder that others have to do with
    with _locked(target.parent):
        content = _read(path)
        before = parse(content, path)
        document = tomlkit.parse(content.decode())
        yield document
        text = tomlkit.dumps(document).encode()
        after = parse(text, path)
        for name in before.nodes.keys() & after.nodes.keys() - {LOCAL}:
            if before.nodes[name] != after.nodes[name]:
                raise ConfigError(f"{path} cannot be edited without changing node {name!r}", hint="edit it by hand")
        _replace(target, text)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Whoever can read the folder can hold this lock, and for ever: it is waited for, and not without end.

    Raises ConfigError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        until = time.monotonic() + _LOCK_PATIENCE_S
        while not _is_taken(descriptor):
            if time.monotonic() > until:
                raise ConfigError(
                    f"the folder {folder} of the inventory has been locked by another process for "
                    f"{_LOCK_PATIENCE_S:.0f} s: nothing was written",
                    hint=f"see which one it is: fuser -v {shlex.quote(str(folder))}",
                )
            time.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return trusted_files.read(path, WHAT)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"cannot read the inventory {path}: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    """Beside it, then over it: a reader sees the file before or the file after, nothing between."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                draft.chmod(path.stat().st_mode & 0o7777)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write the inventory {path}: {error.strerror}") from error
