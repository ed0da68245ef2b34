"""The use cases behind `rbee wheels`: what the cache has and for whom, made now, handed to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rbee.base.errors import ConfigError, RbeeError, UsageError
from rbee.base.events import Notice
from rbee.base.files import LocalFile, file_sha256
from rbee.base.locks import keeper_lock
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.session import on_each, open_session
from rbee.registry import OpenRegistry
from rbee.setup import shared_builds, supplies
from rbee.setup.base.platforms import Target
from rbee.setup.index import files as index_files
from rbee.setup.index.asked import named_now
from rbee.setup.index.builders import Builders, who_built
from rbee.setup.index.publishing import Offer, Publisher, Pushed
from rbee.setup.index.signature import Signer
from rbee.setup.wheels import cached
from rbee.setup.wheels.cache import WheelCache
from rbee.setup.wheels.cached import Cached, State

if TYPE_CHECKING:
    from rbee.registry import Registry


@dataclass(frozen=True, slots=True)
class Listed:
    """A thing in the cache. nodes: names of those that take it."""

    item: Cached
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """root: of the cache. unknown: nodes whose platform no command has seen so far."""

    root: Path
    listed: tuple[Listed, ...]
    unknown: tuple[str, ...]


def listing(root: Path, inventory: Inventory, open_registry: OpenRegistry) -> Listing:
    """What the cache has, and for which nodes, by what the registry knows of them. Raises ConfigError."""
    with open_registry() as registry:
        known = {name: _platform(node, registry) for name, node in inventory.nodes.items()}
    nodes = {name: platform for name, platform in known.items() if platform}
    builders = {name: Builders.of(inventory.nodes[name], inventory.nodes).with_others(named_now()) for name in nodes}

    def takers(item: Cached) -> tuple[str, ...]:
        return tuple(
            name
            for name, (target, backend) in nodes.items()
            if item.fits(target, backend) and (item.wheel is None or builders[name].include(item.wheel.built_on))
        )

    listed = tuple(Listed(item, takers(item)) for item in cached.contents(root))
    return Listing(root, listed, tuple(name for name in inventory.nodes if name not in nodes))


def _platform(node: Node, registry: Registry) -> tuple[Target, str] | None:
    """A node's platform and backend, as far as they are known."""
    facts = registry.node_facts(node.name)
    target = Target.read(facts.platform) if facts else None
    if node.is_local:
        target = replace(target or Target.here(), cpu=Target.here().cpu)
    if target is None:
        return None
    return target, node.backend if node.backend != "auto" else (facts.backend if facts else "") or "cpu"


@dataclass(frozen=True, slots=True)
class Built:
    """Of one node: what it takes from the cache, or why that is not there."""

    node: Node
    gathered: supplies.Gathered | None = None
    error: RbeeError | None = None


async def build_all(context: Context, nodes: Sequence[Node]) -> list[Built]:
    """`build` for several: one build for CUDA serves all that can share it, which is told. A node that fails keeps no
    other from having its own."""
    if len(nodes) == 1:
        return [await _built(context, nodes[0], ())]
    seen = await on_each(context, nodes, lambda session: session.probe())
    probes = [(each.node, each.value) for each in seen if each.value]
    builds = shared_builds.plan(probes, context.inventory.nodes, WheelCache.of(context.settings))
    if said := shared_builds.said(builds):
        context.emit(Notice(said))
    along = {build.head: build.along for build in builds}
    done = {each.node.name: Built(each.node, error=each.error) for each in seen if each.error}
    left = [node for node in nodes if node.name not in done]
    for node in sorted(left, key=lambda node: node.name not in along):  # who takes a shared one finds it made
        done[node.name] = await _built(context, node, list(along.get(node.name, {}).values()))
        if error := done[node.name].error:
            context.emit(Notice(f"{node.name}: {error.message}"))
    return [done[node.name] for node in nodes]


async def _built(context: Context, node: Node, along: Sequence[Target]) -> Built:
    try:
        return Built(node, await build(context, node, along))
    except RbeeError as error:
        return Built(node, error=error)


async def build(context: Context, node: Node, along: Sequence[Target] = ()) -> supplies.Gathered:
    """Have in the cache what a bootstrap of the node takes from there, built here or there as a bootstrap would.

    along: as of `gather`.
    """
    async with (
        open_session(context, node) as session,
        keeper_lock(context.settings, f"bootstrap-{node.name}", f"prepares {node.name}", context.emit),
    ):
        return await supplies.gather(session, await session.probe(), along)


@dataclass(frozen=True, slots=True)
class Chosen:
    """offers: what is to be pushed. left_out: who else has built what is in the cache, and is not asked for."""

    offers: tuple[Offer, ...]
    left_out: tuple[str, ...]


def choose(root: Path, built_by: Sequence[str]) -> Chosen:
    """What of the cache others may fetch: what this machine built, and what `built_by` built.

    Reads it. Raises UsageError for a name that has built nothing and where there is nothing, ConfigError.
    """
    wheels = [(item.path, item.wheel) for item in cached.contents(root) if item.wheel and item.state is State.GOOD]
    others = {who_built(wheel.built_on) for _, wheel in wheels if wheel.built_on}
    if strangers := sorted(set(built_by) - others):
        raise UsageError(f"--built-by: there is nothing in the cache that {strangers[0]} has built")
    offers: dict[str, Offer] = {}
    for folder, wheel in sorted(wheels, key=lambda item: item[1].built_on):  # this machine's come first
        path = index_files.wheel_path(wheel.backend, wheel.file, wheel.libc, wheel.libc_version, wheel.code)
        if path in offers or (wheel.built_on and who_built(wheel.built_on) not in built_by):
            continue
        if file_sha256(folder / wheel.file) != wheel.sha256:
            raise ConfigError(
                f"{folder / wheel.file} was changed after it was made, and is not pushed",
                hint=f"`rm -r {folder}` has it made again",
            )
        offers[path] = Offer(wheel.backend, path, LocalFile(folder / wheel.file, wheel.sha256))
    left_out = tuple(sorted(others - set(built_by)))
    if not offers:
        raise UsageError(
            f"the cache {root} has no llama.cpp to push",
            hint=f"--built-by {quote(left_out[0])} pushes what comes from there, if you trust that"
            if left_out
            else "`rbee wheels build` makes one",
        )
    return Chosen(tuple(offers.values()), left_out)


async def push(
    context: Context, node: Node, folder: str, offers: Sequence[Offer], *, where: str, signer: Signer | None
) -> Pushed:
    """Put wheels into the index in a folder of a node; this machine is one, too. Raises as `Publisher.push`."""
    async with open_session(context, node) as session:
        publisher = Publisher(session.connection, folder, where, signer, context.emit)
        return await publisher.push(offers)
