"""What a hive tells those who follow it: of real processes that follow a script, and over the socket of a real hive."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.node.hive_client import HiveClient
from rbee.transport.local import LocalConnection
from rbee_remote.hive import news
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.news import News
from rbee_remote.protocol import HiveNews, ModelInfo, NodeLoad, WorkerState
from rbee_remote.system.layout import Layout
from tests.patience import PATIENCE_S
from tests.unit.remote.hive.conftest import HiveFolder
from tests.unit.remote.hive.test_supervisor import META, QUICK, spawn, supervising
from tests.unit.remote.hive.test_supervisor import layout as layout


async def until_state(followed: AsyncIterator[HiveNews | None], *states: WorkerState) -> HiveNews:
    """The news in which the workers are in these states."""
    async with asyncio.timeout(PATIENCE_S):
        async for told in followed:
            if told is not None and [worker.state for worker in told.workers] == [*states]:
                return told
    raise AssertionError("the news ended before")


async def test_each_change_of_a_worker_is_told(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        told = News(supervisor, Catalog(layout.models))
        async with aclosing(told.follow(PATIENCE_S)) as followed:
            first = await anext(followed)
            assert first is not None
            assert (first.workers, [model.model for model in first.models or ()]) == ((), ["one", "three", "two"])
            worker, _ = await supervisor.ensure(spawn(busy=True))
            busy = await until_state(followed, WorkerState.BUSY)
            assert busy.models is None
            assert (busy.workers[0].id, busy.workers[0].slots_free) == (worker.id, worker.slots - 1)
            assert [lease.keeper for lease in busy.workers[0].leases] == [""]
            assert worker.child is not None
            os.kill(worker.child.identity.pid, signal.SIGUSR1)
            await until_state(followed, WorkerState.IDLE)
            await supervisor.stop(worker, QUICK)
            await until_state(followed)


async def test_a_worker_that_failed_is_told_until_it_is_forgotten(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        told = News(supervisor, Catalog(layout.models))
        async with aclosing(told.follow(PATIENCE_S)) as followed:
            await supervisor.ensure(spawn(script="fail"))
            failed = await until_state(followed, WorkerState.FAILED)
            assert failed.workers[0].error is not None
            supervisor.forget_failed(now=float("inf"))
            await until_state(followed)


async def test_a_catalog_is_told_again_only_when_it_is_another(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "INTERVAL_S", 0.0)
    async with supervising(layout) as supervisor:
        catalog = Catalog(layout.models)
        told = News(supervisor, catalog)
        async with aclosing(told.follow(PATIENCE_S)) as followed:
            assert (await anext(followed)).models is not None  # type: ignore[union-attr]
            file = layout.models / "four.gguf"
            file.write_bytes(b"GGUF")
            catalog.add(ModelInfo("four", str(file), 4, "0" * 64, True, "", 0.0, META))
            added = await anext(followed)
            assert [model.sha256 for model in added.models or () if model.model == "four"] == ["0" * 64]  # type: ignore[union-attr]
            supervisor.changed.notify()
            assert (await anext(followed)).models is None  # type: ignore[union-attr]
            catalog.remove("four")
            assert len((await anext(followed)).models or ()) == 3  # type: ignore[union-attr]
            (layout.models / "one.gguf").unlink()
            catalog.list()  # drops its record
            assert len((await anext(followed)).models or ()) == 2  # type: ignore[union-attr]


async def test_many_changes_are_one_event_and_silence_is_none(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        told = News(supervisor, Catalog(layout.models))
        async with aclosing(told.follow(news.INTERVAL_S / 10)) as followed:
            await anext(followed)
            for _ in range(100):
                supervisor.changed.notify()
            assert await anext(followed) is not None
            assert await anext(followed) is None


async def test_a_hive_is_followed_until_it_ends(hive: HiveFolder, tiny_gguf: Path) -> None:
    connection = LocalConnection(keeper_id="k")
    client = HiveClient(connection, str(hive.layout.hive_socket), keeper_id="k")
    async with connection, asyncio.timeout(PATIENCE_S), client.follow() as followed:
        assert await anext(followed) == HiveNews((), ())
        model = await asyncio.to_thread(hive.register, "tiny", tiny_gguf)
        told = await anext(followed)
        assert [each.sha256 for each in told.models or ()] == [model["sha256"]]
        assert len(model["sha256"]) == 64
        await asyncio.to_thread(hive.ask, "POST", "/v1/stop", {"drain": False})
        assert [each async for each in followed] == [HiveNews(())]


async def test_who_follows_or_watches_keeps_no_hive_alive(folder: HiveFolder) -> None:
    for idle_exit_s in (1, 4, 16):  # a busy machine may come too late to follow one that ends soon
        info = folder.start(f"--idle-exit={idle_exit_s}")
        with suppress(NodeError):
            assert await _told_at_last(str(folder.layout.hive_socket)) == [HiveNews(()), HiveNews(())]
            await asyncio.to_thread(folder.until_gone, info["pid"])
            return
        await asyncio.to_thread(folder.until_gone, info["pid"])
    pytest.fail("each hive had ended before it was followed")


async def _told_at_last(socket: str) -> list[HiveNews]:
    """The last news for one who follows and for one who watches. Raises NodeError where there is no hive."""
    connection = LocalConnection(keeper_id="k")
    client = HiveClient(connection, socket, keeper_id="k")
    async with connection, asyncio.timeout(PATIENCE_S), client.follow() as followed, client.watch() as watched:
        assert await anext(followed) == await anext(watched) == HiveNews((), ())
        told = await asyncio.gather(_news_of(followed), _news_of(watched))
    return [each[-1] for each in told]


async def _news_of(told: AsyncIterator[HiveNews | NodeLoad]) -> list[HiveNews]:
    return [each async for each in told if isinstance(each, HiveNews)]


async def _until_running(watched: AsyncIterator[HiveNews | NodeLoad]) -> AsyncIterator[NodeLoad]:
    """The loads up to the first in which a worker runs something, whatever news come between them."""
    async for told in watched:
        if isinstance(told, NodeLoad):
            yield told
            if any(load.running for load in told.workers):
                return


async def test_who_watches_hears_how_much_there_is_to_do(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker, _ = await supervisor.ensure(spawn(busy=True))
        told = News(supervisor, Catalog(layout.models))
        async with aclosing(told.watch()) as watched, asyncio.timeout(PATIENCE_S):
            assert isinstance(await anext(watched), HiveNews)
            loads = [told async for told in _until_running(watched)]
            assert [(load.id, load.running) for load in loads[-1].workers] == [(worker.id, 1)]
            assert loads[-1].ram_total_mb > 0
        await supervisor.stop(worker, QUICK)


async def test_a_hive_is_watched_over_its_socket(folder: HiveFolder) -> None:
    folder.start()
    connection = LocalConnection(keeper_id="k")
    client = HiveClient(connection, str(folder.layout.hive_socket), keeper_id="k")
    async with connection, asyncio.timeout(PATIENCE_S), client.watch() as watched:
        assert await anext(watched) == HiveNews((), ())
        loads = [await anext(watched) for _ in range(2)]
    assert all(isinstance(load, NodeLoad) for load in loads)
    assert loads[1].cpu is not None  # type: ignore[union-attr]
