"""Whose processes get the user's hub token: this machine's, and those of nodes whose entry says so. With a real hive,
the real huggingface_hub client, and a hub with TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError, NodeError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.models.provision import ensure_model, push_model
from rbee.models.ref import parse_ref
from rbee.node.hive_client import HiveClient
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup.base import child
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import DownloadProgress, DownloadRequest, ErrorCode, ModelInfo
from tests.doubles.session import session_over
from tests.hub import Hub, running_hub
from tests.unit.remote.hive.conftest import HiveFolder, hive_folder, make_gguf

REPO = "bees/Tiny-GGUF"
REF = parse_ref(f"hf:{REPO}:Q4_1")
TOKEN = "hf_" + "s" * 20
BEARER = f"Bearer {TOKEN}"


class Listening(HiveClient):
    """Remembers what it was asked to pull."""

    def __init__(self, connection: LocalConnection, socket: str) -> None:
        super().__init__(connection, socket, keeper_id="0" * 16)
        self.pulled: list[DownloadRequest] = []

    def pull(self, request: DownloadRequest) -> AsyncIterator[DownloadProgress | ModelInfo]:
        self.pulled.append(request)
        return super().pull(request)


@dataclass
class Bed:
    """A node, its hive running, and a keeper."""

    hive: Listening
    probe: Probe
    connection: LocalConnection
    context: Context
    events: list[Event]

    def session(self, node: Node) -> NodeSession:
        return session_over(self.connection, node, self.context, attached=self)

    async def ensure(self, **node: bool | str) -> ModelInfo:
        made = Node(**({"name": "gpu1", "host": "gpu1.example"} | node))  # type: ignore[arg-type]
        return await ensure_model(self.session(made), REF)

    def said(self) -> str:
        return " ".join(event.text for event in self.events if isinstance(event, Notice))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running_hub(tls=True) as hub:
        hub.add(REPO, "tiny-Q4_1.gguf", make_gguf(tmp_path / "tiny.gguf").read_bytes())
        yield hub


@contextmanager
def _running(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HiveFolder]:
    """The hive knows whom to trust, and nothing of what the keeper's user has set."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(hub.trusted))
    with hive_folder(tmp_path / "node") as folder:
        folder.start()
        yield folder


@pytest.fixture
async def bed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    settings, events = Settings(home=tmp_path / "rbee"), list[Event]()
    context = Context(settings, Inventory({}), lambda: None, "0" * 16, emit=events.append)  # type: ignore[arg-type, return-value]
    with _running(hub, tmp_path, monkeypatch) as folder:
        for name, value in hub.env.items():
            monkeypatch.setenv(name, value)
        async with LocalConnection(keeper_id="0" * 16) as connection:
            hive = Listening(connection, str(folder.layout.hive_socket))
            yield Bed(hive, Probe(system="Linux", home=str(folder.layout.home)), connection, context, events)


async def test_what_everybody_may_have_is_pulled_by_the_node_and_the_token_stays_here(
    bed: Bed, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    await bed.ensure()
    assert [request.token for request in bed.hive.pulled] == [""]
    assert hub.tokens() == {"hub": {None}, "content": {None}}
    assert bed.said() == ""


@pytest.mark.parametrize("gated", [False, True], ids=["hidden", "gated"])
async def test_a_private_model_is_fetched_here_and_sent_and_the_token_stays_here(
    bed: Bed, hub: Hub, monkeypatch: pytest.MonkeyPatch, gated: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token, hub.gated = TOKEN, gated
    found = await bed.ensure()
    assert found.model == REF.canonical
    assert [request.token for request in bed.hive.pulled] == [""]
    assert hub.tokens() == {"hub": {None, BEARER}, "content": {None}}
    assert "gpu1 may not have the hub token" in bed.said()
    assert "downloading here and sending it there" in bed.said()


@pytest.mark.parametrize("trusted", [{"hub_token": True}, {"name": "local", "host": None}], ids=["entry", "local"])
async def test_a_node_that_may_have_the_token_pulls_with_it(
    bed: Bed, hub: Hub, monkeypatch: pytest.MonkeyPatch, trusted: dict[str, bool | str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    await bed.ensure(**trusted)
    assert [request.token for request in bed.hive.pulled] == [TOKEN]
    assert hub.tokens() == {"hub": {None, BEARER}, "content": {None}}
    assert bed.said() == ""


async def test_without_a_token_the_error_says_what_is_needed(bed: Bed, hub: Hub) -> None:
    hub.token = TOKEN
    with pytest.raises(NodeError) as caught:
        await bed.ensure()
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    assert "a private one needs a hub token" in caught.value.hint
    assert bed.said() == ""


async def test_a_token_that_is_no_good_here_either_ends_it(bed: Bed, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    hub.token = TOKEN
    with pytest.raises(NodeError) as caught:
        await bed.ensure()
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    assert hub.tokens() == {"hub": {None, "Bearer hf_another"}}


async def test_a_token_that_others_can_read_is_refused_where_it_is_needed(
    bed: Bed, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    monkeypatch.setenv("HF_TOKEN_PATH", str(file))
    hub.token = TOKEN
    with pytest.raises(ConfigError):
        await bed.ensure()
    hub.token = ""
    await bed.ensure()


async def test_an_endpoint_without_tls_gets_no_token(bed: Bed, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.plain_url)
    hub.token = TOKEN
    for way in (bed.ensure(), bed.ensure(hub_token=True), _push(bed)):
        with pytest.raises(NodeError) as caught:
            await way
        assert "a hub token is only sent over https" in caught.value.hint
    assert hub.tokens() == {"plain": {None}}


async def _push(bed: Bed) -> ModelInfo:
    node = Node("gpu1", host="gpu1.example")
    return await push_model(bed.session(node), REF)


async def test_no_child_of_ours_has_the_token_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "for pip")
    for secrets in (True, False):
        lines: list[str] = []
        assert await child.run(["env"], lines.append, env={"OURS": "1"}, secrets=secrets) == 0
        assert "OURS=1" in lines
        assert TOKEN not in "\n".join(lines)
        assert ("AWS_SECRET_ACCESS_KEY=for pip" in lines) is secrets
