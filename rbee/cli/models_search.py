"""`rbee models search`, and the names that `rbee models list --available` shows: what there is beyond the nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.failed_nodes import partial_failure
from rbee.cli.options import NodeOption, check_range, check_text
from rbee.cli.shell import Shell
from rbee.render import Table
from rbee.render.text import amount

if TYPE_CHECKING:
    from rbee.fleet.search import Found
    from rbee_remote.protocol.search import FoundQuant

_MOST_WORDS = 200
_DEFAULT_CTX = 32768


def search(
    shell: Shell,
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="Words of the models' names.")],
    node: NodeOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Repositories to show, up to 20.")] = 5,
    ctx: Annotated[int, typer.Option("--ctx", metavar="N", help="Context in tokens that is to fit.")] = _DEFAULT_CTX,
) -> None:
    """Search the Hugging Face hub for models, and say which nodes each quantisation fits on."""
    from rbee.fleet.search import search as run

    text = " ".join(words)
    check_text("WORDS", text)
    if not text.strip() or len(text) > _MOST_WORDS or not text.isprintable():
        raise UsageError("WORDS: write one word or a few", hint="rbee models search qwen3 8b")
    check_range("--limit", limit, (1, 20))
    check_range("--ctx", ctx, (16, 2**24))
    context = shell.context
    nodes = context.inventory.select(node) if node or context.inventory.nodes else []
    found = shell.run(run(context, nodes, text, limit=limit, ctx=ctx))
    shell.renderer.table(found_table(found, ctx))
    if failure := partial_failure(found.failed):
        raise failure


def found_table(found: Found, ctx: int) -> Table:
    """A row for each quantisation, the smallest of a repository first."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for model in found.models:
        many = Counter(quant.quant for quant in model.quants)
        less = f" (with {model.ctx:,})" if 0 < model.ctx < ctx else ""
        for quant in model.quants:
            size = "-" if quant.size is None else amount(quant.size)
            # A quantisation that several files have names none of them.
            ref = f"hf:{model.repo}:{quant.quant if quant.quant and many[quant.quant] == 1 else quant.file}"
            rows.append((ref, size, f"{model.downloads:,}", model.license or "-", _fits(quant, less)))
            data.append(_data(ref, quant) | {"downloads": model.downloads, "license": model.license, "ctx": model.ctx})
        if not model.quants:
            rows.append((f"hf:{model.repo}", "-", f"{model.downloads:,}", model.license or "-", "-"))
            data.append({"model": f"hf:{model.repo}", "downloads": model.downloads, "license": model.license})
    return Table(("MODEL", "SIZE", "DOWNLOADS", "LICENCE", f"FITS WITH {ctx:,} TOKENS"), rows, data)


def _fits(quant: FoundQuant, less: str) -> str:
    """The nodes that have the memory, or what it would take. less: of a context that the model has no more than."""
    if not quant.fits:
        return "-"
    fitting = [each.node + (" (in use now)" if each.free is False else "") for each in quant.fits if each.fits]
    needed = [each.needed_mb for each in quant.fits if each.needed_mb]
    return (", ".join(fitting) or f"none, it needs {min(needed):,} MB") + less


def _data(ref: str, quant: FoundQuant) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    return {"model": ref, **encode(quant)}


def available_table() -> Table:
    """The names of models.toml."""
    from rbee.models.ref import built_in

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for name, model in built_in().items():
        source = model.sources[0].describe()
        size = "-" if model.size is None else amount(model.size)
        rows.append((name, model.title, size, model.license, model.kind, source))
        data.append(
            {"model": name, "title": model.title, "size": model.size, "license": model.license}
            | {"kind": model.kind, "sha256": model.sha256, "source": source, "default": model.default}
        )
    return Table(("MODEL", "TITLE", "SIZE", "LICENCE", "FOR", "SOURCE"), rows, data)
