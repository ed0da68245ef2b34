"""What `rbee wheels` shows: as lines and tables, as JSON values, and as lines of an inventory. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rbee.cli.failed_nodes import error_value, why
from rbee.registry.rows import iso_time
from rbee.render import Table
from rbee.render.text import amount
from rbee.setup.index.builders import who_built

if TYPE_CHECKING:
    from rbee.fleet.wheels import Built, Listed, Listing
    from rbee.inventory import Node
    from rbee.setup.index.publishing import Offer, Pushed
    from rbee.setup.index.signature import Signer
    from rbee.setup.supplies import Gathered
    from rbee.setup.wheels.prune import Judged


def listing_table(found: Listing) -> Table:
    rows = [
        (
            " ".join(filter(None, (each.item.kind, each.item.wheel.backend if each.item.wheel else "")))
            + (f" {each.item.version}" if each.item.version else ""),
            _platform(each),
            _builder(each),
            amount(each.item.size),
            _day(each.item.last_used),
            each.item.state or ", ".join(each.nodes) or "no node",
        )
        for each in found.listed
    ]
    return Table(("WHAT", "RUNS ON", "BY", "SIZE", "USED", "FOR"), rows, [])


def listing_data(found: Listing) -> dict[str, Any]:
    return {
        "cache": str(found.root),
        "size": sum(each.item.size for each in found.listed),
        "items": [_item_data(each) for each in found.listed],
        "unknown_nodes": list(found.unknown),
    }


def _item_data(each: Listed) -> dict[str, Any]:
    item, target = each.item, each.item.target
    return {
        "kind": str(item.kind),
        "path": str(item.path),
        "backend": item.wheel.backend if item.wheel else None,
        "version": item.version or None,
        "system": target.system if target else None,
        "machine": target.machine if target else None,
        "libc": target.libc if target else None,
        "libc_version": ".".join(map(str, target.libc_version)) if target else None,
        "python": ".".join(map(str, target.python)) or None if target else None,
        "built_by": item.wheel.built_on or None if item.wheel else None,
        "size": item.size,
        "last_used": _time(item.last_used),
        "nodes": list(each.nodes),
        "state": str(item.state) or "good",
        "why": item.why,
    }


def _platform(each: Listed) -> str:
    """`Linux x86_64, glibc 2.34+`: with that C library or a newer one; what a lock names is for one and a Python."""
    target = each.item.target
    if target is None:
        return "-"
    libc = f"{target.libc or 'unknown'} {'.'.join(map(str, target.libc_version))}".strip()
    newer = "+" if each.item.wheel and target.libc_version else ""
    python = f", Python {'.'.join(map(str, target.python))}" if target.python else ""
    return f"{target.system} {target.machine}, {libc}{newer}{python}"


def _builder(each: Listed) -> str:
    return who_built(each.item.wheel.built_on) if each.item.wheel else "-"


def _time(seconds: float | None) -> str | None:
    return iso_time(seconds) if seconds is not None else None


def _day(seconds: float | None) -> str:
    return (_time(seconds) or "-")[:10]


def built(node: Node, gathered: Gathered) -> tuple[str, dict[str, Any]]:
    verb = "is there already" if gathered.was_there else "is ready"
    text = f"llama.cpp for {node.name} ({gathered.backend}, {gathered.target.name}) {verb}: {gathered.llama.path}"
    data = {
        "node": node.name,
        "backend": gathered.backend,
        "platform": gathered.target.name,
        "wheel": str(gathered.llama.path),
        "sha256": gathered.llama.sha256,
        "was_there": gathered.was_there,
        "packages": str(gathered.packages),
        "uv": str(gathered.uv),
    }
    return text, data


def all_built(done: Sequence[Built]) -> tuple[str, dict[str, Any]]:
    """One node's as it is, several as `nodes`; of one that failed its error."""
    each = [built(one.node, one.gathered) if one.gathered else _not_built(one) for one in done]
    if len(each) == 1:
        return each[0]
    return "\n".join(text for text, _ in each), {"nodes": [data for _, data in each]}


def _not_built(one: Built) -> tuple[str, dict[str, Any]]:
    return f"no llama.cpp for {one.node.name}: {why(one.error)}", {"node": one.node.name, **error_value(one.error)}


def inventory_entries(offers: Sequence[Offer], url: str, signer: Signer | None) -> list[dict[str, Any]]:
    """What `wheel_indexes` of an inventory has to say, a table for each backend."""
    by_backend: dict[str, list[str]] = {}
    for offer in offers:
        by_backend.setdefault(offer.backend, []).append(offer.file.sha256)
    return [
        {"backend": backend, "url": url, **({"key": signer.public} if signer else {"sha256": hashes})}
        for backend, hashes in sorted(by_backend.items())
    ]


def inventory_lines(entries: Sequence[Mapping[str, Any]], *, is_filled_in: bool) -> str:
    """As TOML, below `[defaults]` or a node."""
    tables = [
        "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in entry.items()) + " }," for entry in entries
    ]
    how = "as this machine sees it; others need the address where it is served" if is_filled_in else "fill in the url"
    return "\n".join(
        [
            f"# for an inventory, in [defaults] or at a node; {how}",
            "wheel_indexes = [",
            *(f"  {t}" for t in tables),
            "]",
            "",
        ]
    )


def pushed_text(where: str, pushed: Pushed) -> str:
    counts = {"added": pushed.added, "replaced": pushed.replaced, "there already": pushed.unchanged}
    return f"{where}: " + ", ".join(f"{len(paths)} {word}" for word, paths in counts.items() if paths)


def pushed_data(where: str, pushed: Pushed, entries: Sequence[Mapping[str, Any]], *, is_signed: bool) -> dict[str, Any]:
    return {
        "target": where,
        "folder": pushed.root,
        "added": list(pushed.added),
        "replaced": list(pushed.replaced),
        "unchanged": list(pushed.unchanged),
        "wheels": pushed.total,
        "signed": is_signed,
        "wheel_indexes": list(entries),
    }


def judged_data(each: Judged) -> dict[str, Any]:
    return {
        "kind": str(each.item.kind),
        "path": str(each.item.path),
        "why": each.why,
        "bytes": each.item.size,
        "note": each.failure,
    }
