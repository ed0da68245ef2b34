"""Where prompts are made: chats in the processes of a `RenderPool`, the rest in threads, never on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rbee_remote.constraints import rules
from rbee_remote.protocol import GenerateRequest
from rbee_remote.worker.engine.interface import LoadedModel
from rbee_remote.worker.requests.prompt import Prompt
from rbee_remote.worker.templates.render_pool import RenderPool
from rbee_remote.worker.templates.rendered import Rendered

Prepare = Callable[[GenerateRequest, "Rendered | None"], "Prompt | None"]


class Prompts:
    """home: as in WorkerConfig. prepare: makes the prompt of a request, on any thread. Closed by `close`."""

    def __init__(self, home: str, prepare: Prepare) -> None:
        self._prepare = prepare
        self._render_pool = RenderPool([f"--home={home}"] if home else [])
        self._shaping = ThreadPoolExecutor(1, "shaping")

    def start(self) -> None:
        """Have what a chat needs there by the time the model is loaded."""
        self._render_pool.prepare()

    async def close(self) -> None:
        await self._render_pool.close()
        self._shaping.shutdown(wait=False, cancel_futures=True)

    async def render(self, request: GenerateRequest, info: LoadedModel) -> Rendered:
        """Raises RemoteError, of the chat template's too."""
        return await self._render_pool.render(request, info)

    async def make(self, request: GenerateRequest, info: LoadedModel | None) -> Prompt | None:
        """None while there is no model, of which `info` tells. Raises RemoteError, of the chat template's too."""
        rendered = await self.render(request, info) if request.messages and info else None
        # A schema can take a second, and many of them shall not take the threads that plain requests need.
        thread = self._shaping if request.tools.functions or rules.given(request.sampling) else None
        return await asyncio.get_running_loop().run_in_executor(thread, self._prepare, request, rendered)
