"""`rbee hive stop` on this machine, where a hive runs that says nothing, or nothing that a hive says."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import RbeeError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.fleet.hives import stop_hive
from rbee.inventory import Inventory, Node
from rbee.node.probe import probe
from rbee.registry import Registry
from rbee.transport.local import LocalConnection
from tests.patience import PATIENCE_S

KEEPER = "0" * 16
NODE = Node("local")

#: A payload that listens at the socket of its last argument, says its first, and does not end when it is asked to.
MAIN = """
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listening = socket.socket(socket.AF_UNIX)
if sys.argv[-1] != "-":
    listening.bind(sys.argv[-1])
    listening.listen()
print(flush=True)
held = []
while sys.argv[-1] != "-":
    held.append(listening.accept()[0])
    held[-1].sendall(sys.argv[2].encode())
signal.pause()
"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the probe asks every Python that it finds
    monkeypatch.setattr("rbee.node.hive_client.HEALTH_TIMEOUT_S", 0.5)
    settings = Settings(tmp_path / ".rbee")
    registry = settings.registry_path
    return Context(settings, Inventory({"local": NODE}), lambda: Registry.open(registry), KEEPER)


@pytest.fixture
def start(context: Context) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command of a payload in the node's home."""
    payload = context.settings.home / "node/payloads/0123456789abcdef.zip"
    payload.parent.mkdir(parents=True)
    with zipfile.ZipFile(payload, "w") as archive:
        archive.writestr("__main__.py", MAIN)
    started: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-I", payload, *words], stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("says", ["", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone"], ids=["nothing", "nonsense"])
async def test_it_is_ended_by_signals_with_its_workers_and_only_with_now(
    context: Context, start: Callable[..., subprocess.Popen[bytes]], says: str
) -> None:
    async with LocalConnection(keeper_id=KEEPER) as connection:
        run_dir = Path((await probe(connection, NODE)).run_dir)
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    hive, worker = start("hive", says, str(run_dir / "hive.sock")), start("worker", "", "-")
    bystander = start("survey", "", "-")
    events: list[Event] = []
    context = replace(context, emit=events.append)

    with pytest.raises(RbeeError, match="runs but does not answer") as caught:
        await stop_hive(context, NODE, drain=True)
    assert caught.value.exit_status == 3
    assert "`rbee hive stop local --now`" in caught.value.hint
    assert [child.poll() for child in (hive, worker)] == [None, None]

    assert await stop_hive(context, NODE, drain=False, patience_s=0.5)
    assert [child.wait(PATIENCE_S) for child in (hive, worker)] == [-9, -9]
    assert bystander.poll() is None
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "the hive on local does not answer: ending it and its workers by signals"
    ]
    assert not await stop_hive(context, NODE, drain=False)
