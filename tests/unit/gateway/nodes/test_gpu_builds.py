"""llama.cpp for idle GPUs: for whom it is built, that it is tried once, and that a node that answers is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee.base import installation
from rbee.base.errors import NodeError
from rbee.gateway.nodes import gpu_builds
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.gateway.nodes.gpu_builds import GpuBuilds, Outlook
from rbee.inventory import Node
from rbee.node.probe import Gpu, Probe
from rbee.setup import attach as attaching
from rbee.setup.index.builders import KEEPER
from rbee.setup.wheels.cache import WheelCache
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.unit.gateway.fleet_bed import Bed, node_that

NODE = Node("gpu1", host="192.0.2.1")
L4 = Gpu("nvidia", "NVIDIA L4", 24000, 23000, "580.65", (8, 9))
PROBE = Probe(
    system="Linux", machine="x86_64", libc="glibc 2.36", home="/h", python="/usr/bin/python3",
    python_version=(3, 11, 2), gpus=(L4,), cuda=(13, 0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("there", "can", "gpus", "backend", "builds", "uses"),
    [
        (False, True, (L4,), "auto", True, False),
        (False, False, (L4,), "auto", False, False),
        (False, True, (), "auto", False, False),
        (False, True, (L4,), "cpu", False, False),
        (True, True, (L4,), "auto", False, True),
        (
            False,
            True,
            (L4,),
            "cuda",
            False,
            False,
        ),  # what an inventory names is made when it is used, and not from here
    ],
)
def test_for_whom_it_is_built_and_where_it_only_has_to_be_put_to_use(
    there: bool,
    can: bool,
    gpus: tuple[Gpu, ...],
    backend: str,
    builds: bool,
    uses: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WheelCache, "find_llama", lambda *_: object() if there else None)
    monkeypatch.setattr(WheelCache, "can_get", lambda *_: can)
    node, cache = replace(NODE, backend=backend), WheelCache(tmp_path, tmp_path)
    found = Outlook.of(replace(PROBE, gpus=gpus), "0" * 16, node, cache, KEEPER)
    assert (bool(found.build), bool(found.use)) == (builds, uses)
    if found.use:
        assert Outlook.of(PROBE, found.use, node, cache, KEEPER) == Outlook(), "its hive has it by now"


class Trial:
    """A gateway's builds over two nodes that were used before. outlook: what each node could do better."""

    def __init__(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bed = bed
        self.outlook = {"gpu1": Outlook(build="k"), "gpu2": Outlook(build="k")}
        self.asked: list[Sequence[str]] = []
        self.why = ""
        self.made_ready: list[str] = []
        monkeypatch.setattr(GpuBuilds, "_outlook", lambda _, link: self.outlook[link.node.name])
        monkeypatch.setattr(attaching, "make_ready", self.make_ready)

    async def make_ready(self, session: Any) -> None:
        self.made_ready.append(session.node.name)

    async def build(self, names: Sequence[str]) -> str:
        self.asked.append(names)
        return self.why

    async def run(self, fleet: NodeFleet, seconds: float = 0.2) -> None:
        builds = GpuBuilds(fleet, self.bed.context("gpu1", "gpu2"), self.build, look_s=0.01)
        with suppress(TimeoutError):
            await asyncio.wait_for(builds.run(), seconds)


@pytest.fixture
async def trial(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Trial:
    for name in ("gpu1", "gpu2"):
        await bed.used(name)
    return Trial(bed, monkeypatch)


async def test_one_build_for_all_and_one_that_failed_is_told_and_not_tried_again(trial: Trial) -> None:
    trial.why = "there is no compiler"
    async with NodeFleet(trial.bed.context("gpu1", "gpu2")) as fleet:
        await trial.run(fleet)
    assert trial.asked == [["gpu1", "gpu2"]]
    (told,) = (text for text in trial.bed.notices if "there is no compiler" in text)
    assert "`rbee wheels build --for gpu1 --for gpu2` tries it again" in told
    assert trial.made_ready == []


async def test_a_node_that_answers_is_made_ready_and_its_hive_left_until_it_has_a_pause(trial: Trial) -> None:
    trial.outlook = {"gpu1": Outlook(use="k"), "gpu2": Outlook()}
    async with NodeFleet(trial.bed.context("gpu1", "gpu2")) as fleet:
        await node_that(fleet, "gpu1", lambda view: bool(trial.bed.attached))
        (link,) = (link for link in fleet.links if link.node.name == "gpu1")
        before = trial.bed.attached.count("gpu1")
        link.begun("a" * 16)
        running = asyncio.create_task(trial.run(fleet, PATIENCE_S))
        while not trial.made_ready:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert trial.bed.attached.count("gpu1") == before, "a request runs"
        link.ended("a" * 16)
        while trial.bed.attached.count("gpu1") == before:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert trial.made_ready == ["gpu1"], "once"
    assert "gpu1 uses its GPU once its hive is replaced" in trial.bed.notices, "the doubled hive has no such runtime"
    assert trial.asked == []


async def test_a_node_that_cannot_take_it_goes_on(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_: object) -> None:
        raise NodeError(ErrorCode.DISK_FULL, "the disk is full")

    trial.outlook = {"gpu1": Outlook(use="k"), "gpu2": Outlook()}
    monkeypatch.setattr(attaching, "make_ready", full)
    async with NodeFleet(trial.bed.context("gpu1", "gpu2")) as fleet:
        await trial.run(fleet)
    assert [text for text in trial.bed.notices if "disk is full" in text] == [
        "gpu1 goes on without its GPU: the disk is full"
    ]


@pytest.mark.parametrize(("status", "why"), [(0, ""), (3, "no compiler (status 3)")])
async def test_it_is_built_by_a_process_of_the_least_priority(
    status: int, why: str, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rbee"
    program.write_text(f'#!/bin/sh\necho "$(nice) $RBEE_LINK $*" >{tmp_path}/said\necho no compiler\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setattr(installation, "command", lambda: [str(program)])
    assert await gpu_builds.in_a_process(bed.context("gpu1"))(["gpu1", "gpu2"]) == why
    nice, link, *words = (tmp_path / "said").read_text().split()
    assert (int(nice), link, words[:2], words[-4:]) == (
        19, "off", ["wheels", "build"], ["--for", "gpu1", "--for", "gpu2"],
    )  # fmt: skip
