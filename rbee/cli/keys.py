"""`rbee keys`: who may use the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rbee.cli.shell import Shell, command, group
from rbee.render import Table

if TYPE_CHECKING:
    from rbee.gateway.access.keys import ApiKey

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is: a person, a program.")]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FILE", help="The file of keys. [default: keys.toml in rbee's home]"),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", metavar="NAME", help="A model that it may use; repeatable. [default: all]"),
]


def register(app: typer.Typer) -> None:
    keys = group(app, "keys", "API keys of the gateway: who may use it.")
    command(keys, "add", example="rbee keys add alice --rpm 60")(add)
    command(keys, "list", example="rbee keys list")(list_)
    command(keys, "revoke", example="rbee keys revoke alice")(revoke)


def add(
    shell: Shell,
    name: NameArgument,
    model: ModelsOption = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, max=10_000, metavar="N", help="Requests it may have open at once."),
    ] = None,
    rpm: Annotated[
        int | None, typer.Option("--rpm", min=1, max=60_000, metavar="N", help="Requests it may begin within a minute.")
    ] = None,
    priority: Annotated[
        Literal["low", "normal", "high"], typer.Option("--priority", help="Whose requests come first in the queue.")
    ] = "normal",
    keys: KeysOption = None,
) -> None:
    """Make a key and show it, this once. From the first one on, each call to the gateway needs one."""
    from datetime import UTC, datetime

    from rbee import audit
    from rbee.gateway.access.keys import ApiKey, add_key, hash_of, new_key

    _tell_unknown(shell, model or ())
    secret = new_key()
    key = ApiKey(
        name=name,
        sha256=hash_of(secret),
        models=frozenset(model or ()),
        concurrency=concurrency,
        rpm=rpm,
        priority=priority,
        added=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    with audit.recorded(shell.settings, "key.add", emit=shell.renderer, key=name, fingerprint=key.fingerprint):
        add_key(_path(shell, keys), key)
    if shell.options.json:
        shell.renderer.record({**_data(key), "key": secret})
    else:
        shell.renderer.write(f"{secret}\n")
        shell.renderer.done(f"{name} may use the gateway with this key, which is not shown again", {})


def _tell_unknown(shell: Shell, models: Sequence[str]) -> None:
    """A name that was mistyped would be a key for nothing; one whose alias or node is added later is as good."""
    from difflib import get_close_matches

    from rbee.base.errors import RbeeError
    from rbee.base.events import Notice
    from rbee.models.ref import built_in, parse_ref

    aliases = shell.inventory.models if models else {}
    for name in models:
        try:
            if name not in aliases:
                parse_ref(name)
        except RbeeError:
            near = get_close_matches(name, [*aliases, *built_in()], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            shell.renderer(Notice(f"the key is for {name!r}, which is neither an alias nor a built-in model yet{hint}"))


def list_(shell: Shell, keys: KeysOption = None) -> None:
    """Show the keys, without what they are."""
    from rbee.gateway.access.keys import read_keys

    path = _path(shell, keys)
    found = read_keys(path) if keys or path.exists() else {}
    shell.renderer.table(keys_table(found))


def revoke(shell: Shell, name: NameArgument, keys: KeysOption = None) -> None:
    """End a key at once; its requests that run are finished."""
    from rbee import audit
    from rbee.gateway.access.keys import revoke_key

    with audit.recorded(shell.settings, "key.revoke", emit=shell.renderer, key=name) as details:
        key = revoke_key(_path(shell, keys), name)
        details["fingerprint"] = key.fingerprint
    shell.renderer.done(f"revoked the key {name}", _data(key))


def keys_table(keys: Mapping[str, ApiKey]) -> Table:
    rows = [
        (
            key.name,
            key.fingerprint,
            ", ".join(sorted(key.models)) or "all",
            "-" if key.concurrency is None else str(key.concurrency),
            "-" if key.rpm is None else str(key.rpm),
            key.priority,
            key.added or "-",
        )
        for key in keys.values()
    ]
    columns = ("NAME", "FINGERPRINT", "MODELS", "CONCURRENCY", "RPM", "PRIORITY", "ADDED")
    return Table(columns, rows, [_data(key) for key in keys.values()])


def _path(shell: Shell, keys: Path | None) -> Path:
    from rbee.gateway.access.keys import default_path

    settings = shell.settings  # also for another file: its home is where the audit log is
    return keys.absolute() if keys else default_path(settings)


def _data(key: ApiKey) -> dict[str, object]:
    return {
        "name": key.name,
        "fingerprint": key.fingerprint,
        "models": sorted(key.models),
        "concurrency": key.concurrency,
        "rpm": key.rpm,
        "priority": key.priority,
        "added": key.added or None,
    }
