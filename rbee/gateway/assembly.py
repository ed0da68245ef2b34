"""The gateway's parts, put together: what `serve` is given in a real process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from rbee.context import Context
from rbee.gateway.nodes import gpu_builds
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.gateway.requests.app import Gateway, make_app
from rbee.gateway.requests.model_list import ModelNames
from rbee.gateway.requests.parts import AppSettings, Parts
from rbee.gateway.routing.dispatcher import FleetDispatcher
from rbee.gateway.serve import Surroundings
from rbee.inventory.aliases import ModelAlias
from rbee.link.server import Commands, LinkServer
from rbee.node.pool import Pool


class Assembly:
    """`serve.Constructors`. commands: runs what comes over the link, None for a gateway without one. aliases: beside
    the inventory's. build_for_gpus: as of gpu_builds.py."""

    def __init__(
        self,
        commands: Commands | None = None,
        *,
        aliases: Mapping[str, ModelAlias] = MappingProxyType({}),
        build_for_gpus: bool = False,
    ) -> None:
        self._commands = commands
        self._aliases = aliases
        self._build_for_gpus = build_for_gpus

    @asynccontextmanager
    async def fleet(self, context: Context, nodes: str | None) -> AsyncIterator[NodeFleet]:
        """Its connections are those that commands over the link use."""
        self._pool = Pool(context)
        try:
            async with (
                NodeFleet(replace(context, connections=self._pool), nodes, self._aliases) as fleet,
                gpu_builds.beside(fleet, context) if self._build_for_gpus else nullcontext(),
            ):
                yield fleet
        finally:
            await self._pool.aclose()

    def dispatcher(self, fleet: NodeFleet) -> FleetDispatcher:
        self._dispatcher = FleetDispatcher(fleet)
        return self._dispatcher

    def waiting(self, dispatcher: FleetDispatcher) -> Mapping[str, int]:
        return dispatcher.queued

    def app(self, around: Surroundings[NodeFleet, FleetDispatcher]) -> Gateway:
        return make_app(
            Parts(
                fleet=around.fleet,
                dispatcher=around.dispatcher,
                gate=around.gate,
                recorder=around.recorder,
                names=ModelNames(lambda: around.fleet.inventory, around.fleet),
                settings=AppSettings(origins=around.origins),
                metrics=around.render_metrics,
            )
        )

    def link(self, context: Context, fleet: NodeFleet) -> LinkServer:
        assert self._commands is not None
        return LinkServer(context, self._pool, self._commands, serving=lambda: self._serving(fleet))

    def _serving(self, fleet: NodeFleet) -> dict[str, Any]:
        """What whoever asks the link is told of the gateway's requests."""
        return {
            "running": sum(worker.in_flight for node in fleet.nodes for worker in node.workers),
            "waiting": [asdict(each) for each in self._dispatcher.who_waits()],
        }
