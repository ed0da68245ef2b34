"""What dies, hangs or breaks while an `infer` is under way: processes, connections, the machine.

For each: the wait is bounded (WITHIN_S), message and status are right, nothing is left, and the next `infer` works.

Where in the eight phases a failure strikes matters only where something else is under way, so these stand for all:
- Connection: 2 (cut by bytes: key exchange, probe), 3, 5 and 7. Phase 4 is one request to the hive as 5 is; 1 and 6
  are the keeper's own, and what breaks in them shows when 2 and 7 begin. `close` and `stall` look to the keeper as
  `cut` and `half-open` do; a killed sshd session is a `close`. 8 is in test_reconnecting.py, and in tests/ssh/ with all
  four at any moment.
- Hive: 3 (as 4 and 5: a request without a hive), 7 (it takes the load along), 8 (which goes on without it).
- Worker: 1 (the registry still has it), 7 and 8; before, there is none of ours.
- Keeper: 2 with an upload under way, 7 and 8; in between it holds nothing on the node that 2 has not held.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rbee.base.errors import RbeeError
from rbee.base.events import Finished, Phase
from rbee.base.settings import Settings
from rbee.fleet.hives import stop_hive
from rbee.infer.request import InferRequest
from rbee.transport.ssh import handshake
from rbee_remote.protocol import ErrorCode, Message, Sampling
from tests.patience import PATIENCE_S
from tests.proxy import Fault, Kind, ThreadedProxy, in_thread
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode, wait_until
from tests.testbed.striking import TOKENS_BEFORE, Blow, ask, context_of, forget_workers

pytestmark = [pytest.mark.container, pytest.mark.model]

#: No failure keeps an `infer` waiting for longer: half a minute, and what other work on the machine makes of it.
WITHIN_S = PATIENCE_S
ASK = ("infer", "--node", "gpu1", "--ctx", "512", "--temperature", "0", "--seed", "1", "--max-tokens")
STORY = "Write a very long story about a bee who travels around the world."


@pytest.fixture(scope="module")
def node(shared_ready_node: ContainerNode) -> ContainerNode:
    return shared_ready_node


@pytest.fixture(scope="module")
def proxy(shared_rbee: Rbee, node: ContainerNode) -> Iterator[ThreadedProxy]:
    """Between the keeper and the node, for the whole module; at its end nothing runs on the node any more."""
    with in_thread((node.host, node.port)) as running:
        shared_rbee.inventory.write_text(
            node.inventory(port=str(running.port), ctx="512", slots="2", max_workers="1", keep_alive='"60s"')
        )
        yield running
        shared_rbee("hive", "stop", "gpu1", "--now")
    node.assert_quiet()
    assert parts(node) == []


@pytest.fixture
def good(proxy: ThreadedProxy, node: ContainerNode) -> ThreadedProxy:
    """The proxy, which lets everything pass until a test says otherwise."""
    proxy.lead_to((node.host, node.port))
    return proxy


@pytest.fixture
def alert(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that notices within 2 s, and not within 20, that the other end of its connection is silent."""
    monkeypatch.setattr(handshake, "KEEPALIVE_INTERVAL", 0.5)


def request(tokens: int = 6) -> InferRequest:
    return InferRequest(
        messages=(Message("user", STORY),),
        node="gpu1",
        sampling=Sampling(temperature=0.0, seed=1),
        max_tokens=tokens,
    )


async def answered(rbee: Rbee, phase: Phase, strike: Callable[[], object]) -> Blow:
    """An `infer` through all eight phases, struck in one of them, ends with its whole answer in time."""
    forget_workers(rbee)
    blow, began = Blow(phase, strike), time.monotonic()
    result = await ask(rbee, request(), blow)
    assert isinstance(result, Finished), (result, blow.notices)
    assert blow.struck
    assert result.usage.completion_tokens == 6
    assert time.monotonic() - began < WITHIN_S
    return blow


# --- the connection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut", "half-open"])
@pytest.mark.parametrize("phase", [Phase.MODEL, Phase.START, Phase.READY], ids=str)
async def test_a_connection_that_breaks(
    shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy, alert: None, phase: Phase, kind: Kind
) -> None:
    if phase is Phase.READY:
        end_workers(node)
    started = recorded_starts(shared_rbee)
    blow = await answered(shared_rbee, phase, lambda: good.strike(kind))
    assert good.connections == 2
    assert blow.notices == ["lost the connection to gpu1, trying again"]
    if phase is Phase.READY:
        assert recorded_starts(shared_rbee) == started + 1, "phase 5 came twice, the worker was started once"


@pytest.mark.parametrize("after_bytes", [500, 6000])
async def test_a_connection_that_breaks_while_it_begins(
    shared_rbee: Rbee, node: ContainerNode, proxy: ThreadedProxy, after_bytes: int
) -> None:
    cut = Fault("cut", after_bytes=after_bytes)
    proxy.lead_to((node.host, node.port), lambda number: Fault() if number else cut)
    await answered(shared_rbee, Phase.NODE, lambda: None)
    assert proxy.connections == 2


async def test_a_network_that_is_gone_for_good(shared_rbee: Rbee, node: ContainerNode, proxy: ThreadedProxy) -> None:
    """Found out at once, tried again, and told with what the user can do."""
    forget_workers(shared_rbee)
    proxy.lead_to((node.host, node.port), lambda number: Fault("cut", after_bytes=200) if number else Fault())
    result = await ask(shared_rbee, request(), Blow(Phase.MODEL, lambda: proxy.strike("cut")))
    assert isinstance(result, RbeeError)
    assert (result.code, result.exit_status) == (ErrorCode.CONNECTION_LOST, 3)
    assert result.message == "lost the connection to gpu1 and could not reconnect"
    assert "try again" in result.hint


def test_a_slow_line_with_small_buffers(shared_rbee: Rbee, node: ContainerNode, proxy: ThreadedProxy) -> None:
    """400 ms there and back, 4 KB at a time, through all the phases."""
    forget_workers(shared_rbee)
    proxy.lead_to((node.host, node.port), lambda _: Fault(latency_s=0.2, buffer=4096))
    result = shared_rbee(*ASK, "6", STORY)
    assert result.stdout.strip()
    assert re.findall(r"^✓ (\d) ", result.stderr, re.MULTILINE) == [str(phase.value) for phase in Phase]


# --- processes on the node ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.MODEL, Phase.READY], ids=str)
async def test_a_killed_hive_is_started_again(
    shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy, phase: Phase
) -> None:
    end_workers(node)
    blow = await answered(shared_rbee, phase, lambda: kill(node, "hive"))
    assert blow.notices[-1].endswith("asking gpu1 again")


async def test_a_killed_hive_does_not_end_an_answer(
    shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy
) -> None:
    blow = await answered(shared_rbee, Phase.INFERENCE, lambda: kill(node, "hive"))
    assert blow.notices == []
    wait_until(lambda: not node.processes(), 60, lambda: f"left: {node.processes()}")


async def test_a_killed_worker_is_replaced_where_nothing_was_answered(
    shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy
) -> None:
    """The registry has a row of it; the hive has seen it die."""
    assert isinstance(await ask(shared_rbee, request(), Blow(Phase.NODE, lambda: None)), Finished)
    blow = Blow(Phase.REGISTRY, lambda: kill(node, "worker"))
    assert isinstance(await ask(shared_rbee, request(), blow), Finished)
    assert blow.struck


async def test_a_worker_killed_while_it_loads(shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy) -> None:
    forget_workers(shared_rbee)
    end_workers(node)
    result = await ask(shared_rbee, request(), Blow(Phase.READY, lambda: kill(node, "worker")))
    assert isinstance(result, RbeeError)
    assert (result.code, result.exit_status) == (ErrorCode.WORKER_CRASHED, 8)
    assert "log" in result.details
    assert shared_rbee(*ASK, "2", "Hello").stdout.strip()


def test_a_killed_sshd_session(shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy) -> None:
    undisturbed = shared_rbee(*ASK, "30", STORY).stdout
    with shared_rbee.start(*ASK, "30", STORY) as running:
        running.wait_for_pieces(TOKENS_BEFORE)
        node.exec("pkill -KILL -u bee -x sshd")
        result = running.finish(WITHIN_S)
    assert (result.status, result.stdout) == (0, undisturbed), result.stderr
    assert "reconnected to gpu1" in result.stderr


def end_workers(node: ContainerNode) -> None:
    """Have the next `infer` load the model."""
    for pid in node.pids("worker"):
        node.exec(f"kill -TERM {pid}")
    wait_until(lambda: not node.pids("worker"), 60, lambda: f"left: {node.processes()}")


def recorded_starts(rbee: Rbee) -> int:
    """How many workers the keeper's audit log says it started."""
    log = Settings(rbee.home).log / "audit.log"
    return log.read_text().count('"worker.start"') if log.exists() else 0


def kill(node: ContainerNode, command: str) -> None:
    """SIGKILL to the one process of a kind."""
    (pid,) = node.pids(command)
    node.exec(f"kill -KILL {pid}")
    wait_until(lambda: pid not in node.pids(command), 30, lambda: f"left: {node.processes()}")


# --- what hangs ---------------------------------------------------------------------------------------------------


def test_a_stopped_worker(shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy) -> None:
    """Stopped in mid-answer, and asked again while it is: the one is told what became of it, the other is answered."""
    with shared_rbee.start(*ASK, "400", STORY) as running:
        running.wait_for_pieces(TOKENS_BEFORE)
        (pid,) = node.pids("worker")
        node.exec(f"kill -STOP {pid}")
        began = time.monotonic()
        assert shared_rbee(*ASK, "2", "Hello").stdout.strip()
        result = running.finish(WITHIN_S)
        assert time.monotonic() - began < WITHIN_S
    assert result.status == 8, result.stderr
    assert "the worker died after" in result.stderr
    assert "stopped" in result.stderr
    saved = re.search(r"saved: (\S+)", result.stderr)
    assert saved
    assert Path(saved[1]).read_text().strip() == result.stdout.strip()
    assert pid not in node.pids("worker")


async def test_a_stopped_hive(
    shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm worker needs none; whoever needs one is told soon (here after 2 s, not 10), and how to end it."""
    monkeypatch.setattr("rbee.node.hive_client.HEALTH_TIMEOUT_S", 2.0)
    shared_rbee(*ASK, "2", "Hello")
    (pid,) = node.pids("hive")
    node.exec(f"kill -STOP {pid}")
    try:
        assert shared_rbee(*ASK, "2", "Hello").stdout.strip()
        forget_workers(shared_rbee)
        result = await ask(shared_rbee, request(), Blow(Phase.NODE, lambda: None))
        assert isinstance(result, RbeeError)
        assert (result.message, result.exit_status) == ("the hive on gpu1 runs but does not answer", 3)
        assert "`rbee hive stop gpu1 --now`" in result.hint
        context = context_of(shared_rbee)
        gpu1 = context.inventory.node("gpu1")
        assert await stop_hive(context, gpu1, drain=False, patience_s=1.0)
        assert node.processes() == []
    finally:
        node.try_exec(f"kill -CONT {pid}")
    assert shared_rbee(*ASK, "2", "Hello").stdout.strip()


# --- the machine, and the keeper ----------------------------------------------------------------------------------


def test_a_node_that_restarts(shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy) -> None:
    """In mid-answer, and then while the registry has a row of a worker that was lost with it."""
    with shared_rbee.start(*ASK, "400", STORY) as running:
        running.wait_for_pieces(TOKENS_BEFORE)
        restart(node, good)
        result = running.finish(WITHIN_S)
    assert result.status == 8, result.stderr
    assert "the worker died after" in result.stderr
    assert "saved: " in result.stderr
    assert shared_rbee(*ASK, "2", "Hello").stdout.strip()
    restart(node, good)
    assert shared_rbee(*ASK, "2", "Hello").stdout.strip()


def test_a_killed_keeper(shared_rbee: Rbee, node: ContainerNode, good: ThreadedProxy) -> None:
    """With an upload under way, which the next one continues; while the model loads; in mid-answer."""
    shared_rbee("hive", "stop", "gpu1", "--now")
    node.exec("rm -rf /home/bee/.rbee/node/payloads")
    good.lead_to((node.host, node.port), lambda _: Fault(latency_s=0.1, chunk=4096))
    with shared_rbee.start(*ASK, "2", "Hello") as running:
        wait_until(lambda: parts(node), 60, lambda: f"no upload: {running.text('stderr')}")
        running.kill()
    good.lead_to((node.host, node.port))
    with shared_rbee.start("-v", *ASK, "400", STORY) as running:
        running.wait_for("7 ready")
        running.kill()
    assert parts(node) == []
    with shared_rbee.start(*ASK, "400", STORY) as running:
        running.wait_for_pieces(TOKENS_BEFORE)
        running.kill()
    assert shared_rbee(*ASK, "2", "Hello").stdout.strip()


def test_a_disk_that_fills_up_under_the_logs(
    rbee: Rbee, node: ContainerNode, ready_node: Callable[..., ContainerNode]
) -> None:
    """Logs are lost then, and nothing else."""
    log = "/home/bee/.rbee/node/log"
    uid = node.exec("id -u bee").strip()
    small = ready_node(tmpfs={log: f"size=256k,mode=0700,uid={uid},gid={uid}"})
    rbee.inventory.write_text(small.inventory(ctx="512"))
    with rbee.start(*ASK, "30", STORY) as running:
        running.wait_for_pieces(TOKENS_BEFORE)
        small.try_exec(f"dd if=/dev/zero of={log}/filler bs=4096", user="bee")
        result = running.finish(WITHIN_S)
    assert result.status == 0, result.stderr
    end_workers(small)
    assert rbee(*ASK, "2", "Hello").stdout.strip()
    rbee("hive", "stop", "gpu1")
    small.assert_quiet()


def restart(node: ContainerNode, proxy: ThreadedProxy) -> None:
    node.restart()
    proxy.lead_to((node.host, node.port))
    proxy.strike("cut")


def parts(node: ContainerNode) -> list[str]:
    """Uploads that are not whole."""
    return [name for name in node.files("/home/bee/.rbee/node") if ".part-" in name]
