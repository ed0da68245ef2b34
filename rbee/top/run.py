"""`rbee top`, live: what is watched is drawn, and keys are obeyed, until one of them ends it.

Rules
- All is drawn from one place, at intervals: an event of a node costs what it takes to remember it, and no drawing.
- What is asked of a node (stop a worker, follow a log) runs beside, over the connection that is held; how it went is
  told in the last line.
- Whatever ends it, the terminal is given back first.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

from rbee.base.descriptors import raise_descriptor_limit
from rbee.base.errors import RbeeError
from rbee.context import Context
from rbee.fleet import logs as log_use_case
from rbee.fleet import workers as worker_use_case
from rbee.inventory import Node
from rbee.render.screen import FullScreen
from rbee.render.text import one_line
from rbee.top import layout, serving
from rbee.top.columns import Glyphs
from rbee.top.feed import Feeds, reason, watching
from rbee.top.keys import ESCAPE_S, Keys
from rbee.top.model import HISTORY_S, Fleet, GatewayRow, WorkerRow
from rbee.top.order import Row, RowKey, key_of, rows
from rbee.top.view import FollowLog, LeaveLog, Quit, Screen, Stop, View, follow, pressed

#: Seconds between two pictures; of many nodes fewer are drawn, since each of them changes every second.
INTERVAL_S, MANY_INTERVAL_S, MANY = 0.25, 1.0, 50
#: Of a log.
LINES_BEFORE, MOST_LINES = 200, 1000
#: Descriptors beside those of the nodes, each of which has a connection, and one at this machine a stream.
DESCRIPTORS = 200
#: Of `gc`, whose own thresholds make it look through the rows of a thousand nodes all the time: these are made anew
#: every second, and have no cycles.
GARBAGE = (50_000, 20, 50)


async def live(context: Context, nodes: Sequence[Node], screen: FullScreen, glyphs: Glyphs) -> None:
    """Until the user leaves. Nobody is asked anything but at the keys. Raises OutputClosed, ConfigError."""
    raise_descriptor_limit(2 * len(nodes) + DESCRIPTORS)
    gc.set_threshold(*GARBAGE)
    async with watching(context) as quiet, AsyncExitStack() as stack:
        live = Live(quiet, nodes, screen, glyphs)
        stack.enter_context(screen)
        stack.push_async_callback(live.aclose)
        live.feeds = await stack.enter_async_context(Feeds(quiet, nodes, live.on_change))
        await live.run()


class Live:
    """feeds: what is watched; set before `run`."""

    feeds: Feeds

    def __init__(self, context: Context, nodes: Sequence[Node], screen: FullScreen, glyphs: Glyphs) -> None:
        self._context = context
        self._nodes = {node.name: node for node in nodes}
        self._screen = screen
        self._glyphs = glyphs
        self._view = View()
        self._keys = Keys()
        self._gateway: GatewayRow | None = None
        self._history: deque[float] = deque(maxlen=HISTORY_S)
        self._counted_at = -1.0
        self._log: deque[str] = deque(maxlen=MOST_LINES)
        self._following: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._is_changed = True
        self._is_over = False
        self._escape: asyncio.TimerHandle | None = None

    def on_change(self) -> None:
        """A node is another; the next picture shows it."""
        self._is_changed = True

    async def run(self) -> None:
        """Returns when the user leaves. Raises OutputClosed."""
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._on_input)
        loop.add_signal_handler(signal.SIGWINCH, self._woken.set)
        loop.add_signal_handler(signal.SIGCONT, self._on_return)
        loop.add_signal_handler(signal.SIGTSTP, self._on_suspend)
        self._begin(serving.follow(self._on_gateway), "ask the gateway")
        try:
            await self._drawing()
        finally:
            loop.remove_reader(sys.stdin.fileno())
            for number in (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP):
                loop.remove_signal_handler(number)

    async def aclose(self) -> None:
        if self._escape is not None:
            self._escape.cancel()
        tasks = [*self._tasks, *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drawing(self) -> None:
        interval = INTERVAL_S if len(self._nodes) < MANY else MANY_INTERVAL_S
        drawn_at = -1.0
        while not self._is_over:
            now = time.monotonic()
            if self._is_changed or self._woken.is_set() or now - drawn_at >= 1.0:
                self._is_changed = False
                self._draw()
                drawn_at = now
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._woken.wait()

    def _fleet(self) -> Fleet:
        now = time.monotonic()
        return Fleet(tuple(node.row(now) for node in self.feeds.nodes.values()), self._gateway, tuple(self._history))

    def _draw(self) -> None:
        fleet, size, now = self._fleet(), self._screen.size, time.monotonic()
        if now - self._counted_at >= 1.0:  # there is a picture each second at least, and rows are made once for it
            self._counted_at = now
            self._history.append(fleet.rate)
        shown = rows(fleet.nodes, self._view.sort, self._view.filter)
        self._view = follow(self._view, shown, layout.page(fleet, self._view, size, self._glyphs))
        drawn = layout.lines(fleet, shown, self._view, size, self._glyphs, self._log)
        self._screen.draw(drawn, size)

    # --- keys and signals ---------------------------------------------------------------------------------------

    def _on_input(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), 4096)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            self._is_over = True
            self._woken.set()
            return
        if self._escape is not None:
            self._escape.cancel()
        self._press(self._keys.feed(data))
        if self._keys.is_begun:
            self._escape = asyncio.get_running_loop().call_later(ESCAPE_S, lambda: self._press(self._keys.flush()))

    def _press(self, keys: Sequence[str]) -> None:
        for key in keys:
            fleet, size = self._fleet(), self._screen.size
            shown = rows(fleet.nodes, self._view.sort, self._view.filter)
            page = layout.page(fleet, self._view, size, self._glyphs)
            lines = 0
            if self._view.screen is not Screen.LIST:
                lines = len(layout.text(self._view, shown, size[0], self._glyphs, self._log))
            self._view, action = pressed(self._view, key, shown, page, lines)
            match action:
                case Quit():
                    self._is_over = True
                case Stop(row):
                    stopped = next((each for each in shown if key_of(each) == row), None)
                    self._begin(self._stop(row, stopped), "stop a worker")
                case FollowLog(row):
                    self._follow_log(row)
                case LeaveLog():
                    self._leave_log()
        if keys:
            self._woken.set()

    def _on_suspend(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTSTP)  # so that it has its own effect
        self._screen.suspend()
        loop.add_signal_handler(signal.SIGTSTP, self._on_suspend)
        self._woken.set()

    def _on_return(self) -> None:
        """Somebody else may have used the terminal meanwhile."""
        self._screen.enter()
        self._woken.set()

    def _on_gateway(self, gateway: GatewayRow | None) -> None:
        self._is_changed = self._is_changed or gateway != self._gateway
        self._gateway = gateway

    # --- what is asked of nodes ---------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _say(self, message: str) -> None:
        self._view = replace(self._view, message=message)
        self._woken.set()

    async def _stop(self, row: RowKey, shown: Row | None) -> None:
        model = f" ({shown.model})" if isinstance(shown, WorkerRow) else ""
        worker = f"worker {row.worker[:8]}{model} on {row.node}"
        self._say(f"stopping {worker}")
        try:
            await worker_use_case.stop_worker(self._context, self._nodes[row.node], row.worker, drain=True)
        except RbeeError as error:
            self._say(f"{worker}: {reason(error, row.node)}")
        else:
            self._say(f"stopped {worker}")

    def _follow_log(self, row: RowKey) -> None:
        self._leave_log()
        self._log.clear()
        self._following = asyncio.create_task(self._log_of(row), name="follow a log")

    def _leave_log(self) -> None:
        if self._following is not None:
            self._tasks.add(self._following)  # until it has ended
            self._following.add_done_callback(self._tasks.discard)
            self._following.cancel()
            self._following = None

    async def _log_of(self, row: RowKey) -> None:
        def write(line: bytes) -> None:
            self._log.append(one_line(line.decode(errors="replace")))
            self._is_changed = True

        try:
            await log_use_case.logs(
                self._context,
                self._nodes[row.node],
                worker=row.worker or None,
                lines=LINES_BEFORE,
                follow=True,
                write=write,
            )
            self._log.append("(the log has ended)")
        except RbeeError as error:
            self._log.append(f"({reason(error, row.node)})")
        self._is_changed = True
