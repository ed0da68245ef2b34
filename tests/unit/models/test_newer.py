"""A model that is there already: whether the hub has a newer one, and what is done about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.models.newer import can_move, is_newer, of_copy, pull_model
from rbee.models.ref import parse_ref
from rbee.models.store import ModelStore
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup.base.payload import build_payload
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import (
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    ModelInfo,
    ModelMeta,
    NewestModel,
    RegisterRequest,
)
from rbee_remote.protocol.elsewhere import FoundElsewhere
from tests.doubles.session import session_over
from tests.hub import COMMIT, Hub, running_hub

REF = parse_ref("hf:o/r:Q8_0")
FILE = "m-Q8_0.gguf"
NEXT = "f" * 40
COPY = ModelInfo(
    REF.canonical, "/m", 1, "a" * 64, True, f"hf:o/r:{FILE}@{COMMIT}", 0.0, ModelMeta("llama", 1, 1, 1, 1, 1, 1, 1)
)
NEWER = NewestModel(f"hf:o/r:{FILE}@{NEXT}", "b" * 64)
TAKEN = replace(COPY, sha256=NEWER.sha256, source=NEWER.source)


@dataclass
class ScriptedHive:
    answer: NewestModel | NodeError
    asked: list[DownloadRequest] = field(default_factory=list)
    pulled: list[DownloadRequest] = field(default_factory=list)
    catalog: tuple[ModelInfo, ...] = (COPY,)
    found: tuple[FoundElsewhere, ...] = ()

    async def models(self) -> list[ModelInfo]:
        return list(self.catalog)

    async def elsewhere(self) -> list[FoundElsewhere]:
        return list(self.found)

    async def newest(self, request: DownloadRequest) -> NewestModel:
        self.asked.append(request)
        if isinstance(self.answer, NodeError):
            raise self.answer
        return self.answer

    async def pull(self, request: DownloadRequest) -> AsyncIterator[DownloadProgress | ModelInfo]:
        self.pulled.append(request)
        if isinstance(self.answer, NodeError):
            raise self.answer
        yield TAKEN

    async def register(self, request: RegisterRequest, size: int = 0) -> ModelInfo:
        return replace(COPY, path=request.path, sha256=request.sha256, source=request.source)


@dataclass
class Attached:
    hive: ScriptedHive
    probe: Probe


@pytest.fixture
async def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[NodeSession, list[Event]]]:
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    attached, events = Attached(ScriptedHive(NEWER), Probe(system="Linux", home=str(tmp_path / "node"))), list[Event]()
    context = Context(Settings(home=tmp_path / "rbee"), Inventory({}), lambda: None, "0" * 16, emit=events.append)  # type: ignore[arg-type, return-value]
    async with LocalConnection(keeper_id="0" * 16) as connection:
        yield session_over(connection, Node("gpu1", host="gpu1.example"), context, attached), events


def hive_of(session: NodeSession) -> ScriptedHive:
    hive = session.attached.hive
    assert isinstance(hive, ScriptedHive)
    return hive


def notices(events: list[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Notice))


async def test_a_newer_commit_is_told_and_taken_when_that_is_wanted(session: tuple[NodeSession, list[Event]]) -> None:
    on, events = session
    assert await pull_model(on, REF, refresh=False) == COPY
    assert hive_of(on).pulled == []
    assert f"commit {NEXT[:12]}" in notices(events)
    assert f"rbee models pull gpu1 {REF.canonical} --refresh" in notices(events)
    assert hive_of(on).asked[0].sources[0].file == FILE
    assert await pull_model(on, REF, refresh=True) == TAKEN
    assert hive_of(on).pulled[0].model == REF.canonical


@pytest.mark.parametrize("refresh", [True, False])
async def test_a_commit_that_leaves_the_file_as_it_is_is_none(
    session: tuple[NodeSession, list[Event]], refresh: bool
) -> None:
    on, events = session
    hive_of(on).answer = replace(NEWER, sha256=COPY.sha256)
    assert await pull_model(on, REF, refresh=refresh) == COPY
    assert notices(events) == ""


async def test_without_a_hub_the_copy_is_what_there_is(
    session: tuple[NodeSession, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    on, events = session
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    hive_of(on).answer = NodeError(ErrorCode.DOWNLOAD_FAILED, "no way out", details={"network": False})
    assert await pull_model(on, REF, refresh=False) == COPY
    assert notices(events) == ""
    with pytest.raises(NodeError):
        await pull_model(on, REF, refresh=True)


async def test_a_file_that_the_hub_has_no_more_is_told(session: tuple[NodeSession, list[Event]]) -> None:
    on, events = session
    hive_of(on).answer = NodeError(ErrorCode.MODEL_NOT_FOUND, "o/r has no file m-Q8_0.gguf")
    assert await pull_model(on, REF, refresh=False) == COPY
    assert "stays as it is" in notices(events)


async def test_a_file_that_was_renamed_is_taken_by_what_the_ref_means_now(
    session: tuple[NodeSession, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    on, _ = session
    hive = hive_of(on)

    async def newest(request: DownloadRequest) -> NewestModel:
        raise NodeError(ErrorCode.MODEL_NOT_FOUND, f"o/r has no file {request.sources[0].file}")

    monkeypatch.setattr(hive, "newest", newest)
    assert await pull_model(on, REF, refresh=True) == TAKEN
    assert hive.pulled[0].sources == REF.sources


@pytest.mark.parametrize("file", ["m (v2)-Q8_0.gguf", "m@home:Q8_0.gguf", "módel-Q8_0.gguf"])
async def test_a_file_that_no_ref_could_name_is_asked_for_all_the_same(
    session: tuple[NodeSession, list[Event]], file: str
) -> None:
    on, events = session
    hive_of(on).catalog = (replace(COPY, source=f"hf:o/r:{file}@{COMMIT}"),)
    await pull_model(on, REF, refresh=False)
    assert hive_of(on).asked[0].sources[0].file == file
    assert f"commit {NEXT[:12]}" in notices(events)


async def test_a_copy_of_an_unknown_commit_is_not_called_old(session: tuple[NodeSession, list[Event]]) -> None:
    on, events = session
    copy = replace(COPY, owned=False, sha256="", source=f"hf:o/r:{FILE}")
    hive_of(on).catalog = (copy,)
    assert await pull_model(on, REF, refresh=False) == copy
    assert notices(events) == ""
    assert hive_of(on).asked[0].sources[0].file == FILE
    assert await pull_model(on, REF, refresh=True) == TAKEN


@pytest.mark.parametrize("ref", ["smollm2:135m", f"hf:o/r:Q8_0@{COMMIT}", "file:/m.gguf"])
async def test_what_cannot_change_is_not_asked_for(session: tuple[NodeSession, list[Event]], ref: str) -> None:
    on, _ = session
    hive_of(on).catalog = (replace(COPY, model=ref),)
    assert not can_move(parse_ref(ref))
    assert (await pull_model(on, parse_ref(ref), refresh=False)).model == ref
    assert hive_of(on).asked == []
    with pytest.raises(UsageError):
        await pull_model(on, parse_ref(ref), refresh=True)


async def test_an_address_is_fetched_again_where_that_is_wanted(session: tuple[NodeSession, list[Event]]) -> None:
    on, _ = session
    ref = parse_ref("https://h.example/m.gguf")
    hive_of(on).catalog = (replace(COPY, model=ref.canonical),)
    await pull_model(on, ref, refresh=False)
    assert hive_of(on).pulled == []
    await pull_model(on, ref, refresh=True)
    assert hive_of(on).pulled[0].model == ref.canonical


def test_by_commit_where_nobody_knows_the_content() -> None:
    assert is_newer(replace(COPY, sha256=""), NEWER)
    assert not is_newer(replace(COPY, sha256=""), NewestModel(COPY.source))


def test_a_copy_that_came_from_elsewhere_is_asked_for_by_the_ref() -> None:
    assert of_copy(REF, replace(COPY, source="file:/x")).sources == REF.sources


# --- the keeper's own copy ------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


async def test_the_keepers_copy_is_replaced_once_the_new_one_is_whole(hub: Hub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", build_payload(), tmp_path / "download.log")
    request = DownloadRequest(REF.canonical, REF.sources, endpoint=hub.url)
    hub.add("o/r", FILE, b"one")
    first = await store.fetch(REF, request, lambda _: None, lambda _: None)
    sha256 = hub.add("o/r", FILE, b"two")
    hub.commits["o/r"] = NEXT
    assert await store.newest(request) == NewestModel(f"hf:o/r:{FILE}@{NEXT}", sha256)
    assert await store.fetch(REF, request, lambda _: None, lambda _: None) == first
    second = await store.fetch(REF, request, lambda _: None, lambda _: None, refresh=True)
    assert second.sha256 == sha256
    assert second.files[0].path.read_bytes() == b"two"
    assert not first.files[0].path.exists()


async def test_for_a_node_without_a_way_out_the_newest_is_asked_for_and_fetched_here(
    session: tuple[NodeSession, list[Event]], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, events = session
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hive_of(on).answer = NodeError(ErrorCode.DOWNLOAD_FAILED, "no way out", details={"network": False})
    first = hub.add("o/r", FILE, b"one")
    hive_of(on).catalog = ()
    copy = await pull_model(on, REF, refresh=False)
    assert copy.sha256 == first
    hive_of(on).catalog = (copy,)
    second = hub.add("o/r", FILE, b"two")
    hub.commits["o/r"] = NEXT
    assert await pull_model(on, REF, refresh=False) == copy
    assert f"commit {NEXT[:12]}" in notices(events)
    taken = await pull_model(on, REF, refresh=True)
    assert (taken.sha256, taken.source) == (second, f"hf:o/r:{FILE}@{NEXT}")
    assert (Path(on.attached.probe.home) / f"models/{second}.gguf").read_bytes() == b"two"


async def test_a_split_model_is_kept_by_the_keeper_as_its_parts(hub: Hub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", build_payload(), tmp_path / "download.log")
    for number, content in enumerate((b"one", b"two"), start=1):
        hub.add("o/r", f"m-Q8_0-0000{number}-of-00002.gguf", content)
    request = DownloadRequest(REF.canonical, REF.sources, endpoint=hub.url)
    stored = await store.fetch(REF, request, lambda _: None, lambda _: None)
    assert [file.path.read_bytes() for file in stored.files] == [b"one", b"two"]
    assert {file.name for file in stored.files} == {f"{stored.sha256}-0000{n}-of-00002.gguf" for n in (1, 2)}
    hub.seen.clear()
    assert await store.fetch(REF, request, lambda _: None, lambda _: None) == stored
    assert hub.seen == []


async def test_a_node_with_less_space_gets_a_file_of_its_own(hub: Hub, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", build_payload(), tmp_path / "download.log")
    ref = parse_ref("hf:o/r")
    for name, size in (("m-Q4_K_M.gguf", 1000), ("m-Q3_K_M.gguf", 600), ("m-Q2_K.gguf", 300)):
        hub.add("o/r", name, name[2:4].encode() * (size // 2))
    request = DownloadRequest(ref.canonical, ref.sources, endpoint=hub.url)
    sizes = []
    for room in (5000, 700, 100, 5000, 700, 100):
        stored = await store.fetch(ref, replace(request, room=room), lambda _: None, lambda _: None)
        sizes.append(stored.size)
        assert stored.files[0].path.is_file()
        if len(sizes) == 3:
            hub.seen.clear()
    assert sizes == [1000, 600, 300] * 2
    assert hub.seen == []
