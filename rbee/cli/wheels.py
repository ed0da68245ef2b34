"""`rbee wheels`: the builds of llama.cpp and the packages that nodes get from this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rbee.base.errors import NodeError, UsageError
from rbee.base.settings import expand
from rbee.cli.options import complete_node
from rbee.cli.shell import Shell, command, group
from rbee.render.text import amount
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.inventory import Node
    from rbee.setup.index.signature import Signer
    from rbee.setup.wheels.prune import Judged

ForOption = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="NODE",
        help="For this node (@TAG or all for several), as a bootstrap would; may be repeated, and one build for CUDA "
        "serves all that can share it. [default: this machine]",
        autocompletion=complete_node,
    ),
]  # fmt: skip
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="cpu, cuda, metal, rocm or vulkan. [default: the node's]",
        show_default=False,
    ),
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="A folder, or NODE:PATH or [USER@]HOST:PATH on another machine.")
]
SignOption = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEYFILE", help="Sign with this SSH key, by ssh-keygen.", show_default=False),
]
BuiltByOption = Annotated[
    list[str] | None,
    typer.Option(
        "--built-by",
        metavar="WHO",
        help="What these built or vouch for, too, as the list names them.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")]


def register(app: typer.Typer) -> None:
    wheels = group(app, "wheels", "The builds of llama.cpp and the packages that nodes get from this machine.")
    command(wheels, "list", example="rbee wheels list")(list_)
    command(wheels, "build", example="rbee wheels build --for gpu1")(build)
    command(wheels, "push", example="rbee wheels push /srv/wheels --sign wheels-key")(push)
    command(wheels, "prune", example="rbee wheels prune --dry-run")(prune)


def list_(shell: Shell) -> None:
    """List what the wheel cache has, who built it, and which nodes take it."""
    from rbee.base.events import Notice
    from rbee.cli import wheels_view
    from rbee.fleet import wheels
    from rbee.setup.wheels.cache import WheelCache

    found = wheels.listing(WheelCache.of(shell.settings).root, shell.inventory, shell.open_registry)
    if shell.options.json:
        shell.renderer.record(wheels_view.listing_data(found))
        return
    if found.listed:
        shell.renderer.table(wheels_view.listing_table(found))
    else:
        shell.renderer(Notice(f"{found.root} has nothing so far; `rbee wheels build` makes it"))
    for each in found.listed:
        if each.item.why:
            shell.renderer(Notice(f"{each.item.state}: {each.item.path}: {each.item.why}"))
    if found.unknown:
        shell.renderer(Notice(f"not known what fits: {', '.join(found.unknown)} (no command has used them so far)"))


def build(shell: Shell, for_: ForOption = None, backend: BackendOption = None) -> None:
    """Fetch or build now what a node will need: llama.cpp, its packages and uv. What is there is not made again."""
    from dataclasses import replace

    from rbee.cli import wheels_view
    from rbee.cli.failed_nodes import partial_failure
    from rbee.fleet import wheels
    from rbee.inventory import LOCAL

    context = shell.context
    nodes = list({node.name: node for name in for_ or [LOCAL] for node in context.inventory.select(name)}.values())
    if backend is not None:
        nodes = [replace(node, backend=_backend(backend)) for node in nodes]
    done = shell.run(wheels.build_all(context, nodes))
    failure = partial_failure([each.error for each in done])
    if len(done) > 1 or not failure:
        shell.renderer.done(*wheels_view.all_built(done))
    if failure:
        raise failure


def _backend(name: str) -> str:
    """Raises UsageError."""
    from rbee_remote.protocol.load_options import COMPILED_BACKENDS

    if name not in COMPILED_BACKENDS:
        raise UsageError(f"--backend: {name!r} is none of {', '.join(COMPILED_BACKENDS)}")
    return name


def push(shell: Shell, target: TargetArgument, sign: SignOption = None, built_by: BuiltByOption = None) -> None:
    """Put the builds of llama.cpp that are in the cache into an index that others use, and print how."""
    from shlex import quote

    from rbee.base.events import Notice
    from rbee.cli import wheels_view
    from rbee.fleet import wheels
    from rbee.setup.wheels.cache import WheelCache

    context = shell.context
    node, folder, where = _place(shell, target)
    chosen = wheels.choose(WheelCache.of(shell.settings).root, built_by or ())
    for name in chosen.left_out:
        option = f"--built-by {quote(name)}"
        shell.renderer(
            Notice(f"what {name} built or vouches for is not pushed; {option} does, if others can trust that")
        )
    signer = shell.run(_signer(expand(str(sign)))) if sign else None
    pushed = shell.run(wheels.push(context, node, folder, chosen.offers, where=where, signer=signer))
    url = Path(pushed.root).as_uri() if node.is_local else "https://FILL.IN/THE/ADDRESS"
    entries = wheels_view.inventory_entries(chosen.offers, url, signer)
    if not shell.options.json:
        shell.renderer.write(wheels_view.inventory_lines(entries, is_filled_in=node.is_local))
    shell.renderer.done(
        wheels_view.pushed_text(where, pushed), wheels_view.pushed_data(where, pushed, entries, is_signed=bool(signer))
    )


async def _signer(file: Path) -> Signer:
    from rbee.setup.index.signature import Signer

    return await Signer.of(file)


def _place(shell: Shell, target: str) -> tuple[Node, str, str]:
    """The node, its folder, and both in words. Raises UsageError."""
    import re
    from dataclasses import replace

    from rbee.cli.nodes import make_node
    from rbee.inventory import LOCAL

    if "://" in target:
        raise UsageError(
            f"{target!r} is an address, and wheels are pushed to a folder",
            hint="name the folder that is served there: /srv/wheels, or HOST:/srv/wheels",
        )
    found = re.fullmatch(r"((?:[^@/:]+@)?(?:\[[^\]]+\]|[^@/:\[\]]+)):(.+)", target)
    if found is None:
        if not target or target.endswith(":"):
            raise UsageError(f"{target!r} names no folder", hint="/srv/wheels, or HOST:/srv/wheels")
        folder = str(expand(target).absolute())
        return shell.inventory.node(LOCAL), folder, folder
    nodes = shell.inventory.nodes
    node = nodes[found[1]] if found[1] in nodes else replace(make_node("push", found[1]), name=found[1])
    return node, found[2], target


def prune(shell: Shell, dry_run: DryRunOption = False) -> None:
    """Remove from the wheel cache what this rbee's locks do not name, what is damaged, and what was left half made."""
    from rbee.setup.wheels import prune as cache_prune
    from rbee.setup.wheels.cache import WheelCache

    root = WheelCache.of(shell.settings).root
    judged, another_builds = cache_prune.judge(root), False
    if judged and not dry_run:
        with cache_prune.while_nobody_builds(root) as free:
            another_builds = not free
            judged = [cache_prune.remove(each) if each.goes and free else each for each in cache_prune.judge(root)]
    _tell(shell, judged, dry_run=dry_run, another_builds=another_builds)
    if failed := [each for each in judged if each.failure]:
        raise NodeError(
            ErrorCode.CLEANUP_FAILED,
            f"{failed[0].item.path} cannot be removed: {failed[0].failure}",
            hint="see who owns what is in it",
        )


def _tell(shell: Shell, judged: Sequence[Judged], *, dry_run: bool, another_builds: bool) -> None:
    from rbee.base.events import Notice
    from rbee.cli import wheels_view

    going = [each for each in judged if each.goes and not each.failure and not another_builds]
    freed = sum(each.item.size for each in going)
    verb = "would remove" if dry_run else "removed"
    if not shell.options.json:
        for each in going:
            if dry_run or not shell.options.quiet:
                shell.renderer.write(
                    f"here: {verb} {each.item.kind} {each.item.path} ({amount(each.item.size)}): {each.why}\n"
                )
        for each in judged:
            if not each.goes:
                shell.renderer(Notice(f"kept {each.item.path}: {each.why}"))
    text = f"{verb} {len(going)}, {amount(freed)}" if going else "nothing to remove"
    if another_builds:
        text = "another rbee builds llama.cpp; nothing is removed meanwhile"
    data = {
        "dry_run": dry_run,
        "another_builds": another_builds,
        "actions": [wheels_view.judged_data(each) for each in judged if each.goes],
        "kept": [{"path": str(each.item.path), "why": each.why} for each in judged if not each.goes],
        "freed_bytes": freed,
    }
    shell.renderer.done(text, data)
