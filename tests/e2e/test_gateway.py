"""`rbee serve` before three real nodes: clients that people use, workers and connections that end in mid-answer."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.patience import PATIENCE_S
from tests.proxy import ThreadedProxy, in_thread
from tests.testbed.cli import Rbee, Running
from tests.testbed.node import ContainerNode, start_node, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]

NAMES = ("one", "two", "three")
MODEL = "smollm2:135m"
STORY = "Write a very long story about a bee who travels around the world."
ALIAS = f"""
[models.fast]
model = "{MODEL}"
nodes = ["one", "two"]
system = "You are a bee."
sampling = {{ temperature = 0 }}
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A `rbee serve` that runs. nodes: the machines behind it by name. ways: a network to each that can fail."""

    running: Running
    address: str
    nodes: dict[str, ContainerNode]
    ways: dict[str, ThreadedProxy]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def nodes(key: Any, bootstrapped_image: str) -> Iterator[dict[str, ContainerNode]]:
    with ExitStack() as stack:
        started = {}
        for name in NAMES:
            container, started[name] = start_node(key, name=name, image=bootstrapped_image)
            stack.callback(container.stop)
        yield started


@pytest.fixture(scope="module")
def gateway(shared_rbee: Rbee, nodes: dict[str, ContainerNode]) -> Iterator[Gateway]:
    with ExitStack() as stack:
        ways = {name: stack.enter_context(in_thread((node.host, node.port))) for name, node in nodes.items()}
        tables = [node.inventory(port=str(ways[name].port), tags='["far"]') for name, node in nodes.items()]
        shared_rbee.inventory.write_text("\n".join(tables) + ALIAS)
        with serving(shared_rbee) as (running, address):
            yield Gateway(running, address, nodes, ways)
        with ExitStack() as stopping:
            stops = [stopping.enter_context(shared_rbee.start("hive", "stop", name)) for name in nodes]
            assert [stop.finish().status for stop in stops] == [0] * len(stops)
        for node in nodes.values():
            node.assert_quiet()


@contextmanager
def serving(rbee: Rbee, *options: str) -> Iterator[tuple[Running, str]]:
    """A gateway on a free port until the block ends; ended as systemd ends it, and then nothing is left of it."""
    with rbee.start("serve", "--listen", "127.0.0.1:0", "--nodes", "@far", *options) as running:
        yield running, running.gateway()
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
        assert running.finish().status == 0, running.text("stderr")


def ask(**more: Any) -> dict[str, Any]:
    """The body of a chat. A seed has the worker compute the whole prompt each time."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": STORY}], "temperature": 0, "seed": 1}
    return {**body, "max_tokens": 60, "stream": True, **more}


def streamed(client: httpx.Client, body: dict[str, Any], *, at: int = -1, strike: Any = None) -> str:
    """The text of a streamed chat, which has to have an end. strike: called once `at` lines have come."""
    pieces: list[str] = []
    ended = False
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for number, line in enumerate(line for line in response.iter_lines() if line.startswith("data: ")):
            assert "rbee" not in line.partition('"choices"')[0].replace(MODEL, ""), line
            if number == at:
                strike()
            if line == "data: [DONE]":
                ended = True
                continue
            data = json.loads(line.removeprefix("data: "))
            assert "error" not in data, data
            pieces += [choice["delta"].get("content") or "" for choice in data["choices"]]
    assert ended, pieces
    return "".join(pieces)


def busy_worker(gateway: Gateway) -> tuple[ContainerNode, int]:
    """Node and pid of the worker that computes just now."""
    before = {(name, pid): node.work_done(pid) for name, node in gateway.nodes.items() for pid in node.pids("worker")}

    def grown() -> list[tuple[ContainerNode, int]]:
        found = ((gateway.nodes[name], pid, ticks) for (name, pid), ticks in before.items())
        return [(node, pid) for node, pid, ticks in found if node.work_done(pid) not in ("", ticks)]

    wait_until(grown, PATIENCE_S, lambda: f"no worker computes: {before}")
    return grown()[0]


def kill_busy(gateway: Gateway) -> None:
    node, pid = busy_worker(gateway)
    node.exec(f"kill -KILL {pid}")


def test_openai_s_client_gets_what_it_asks_for(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=f"{gateway.address}/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0
    )
    chunks = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert {MODEL, "fast"} <= {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.chat.completions.create(model="smolm2:135m", messages=[{"role": "user", "content": "Hello"}])


def test_an_alias_is_served_by_its_nodes_alone(gateway: Gateway) -> None:
    with gateway.client() as client:
        answer = client.post("/v1/chat/completions", json=ask(model="fast@two", stream=False, max_tokens=4))
        assert answer.status_code == 200, answer.text
        refused = client.post("/v1/chat/completions", json=ask(model="fast@three", stream=False, max_tokens=4))
    assert refused.status_code == 404
    assert gateway.nodes["two"].pids("worker")


@pytest.mark.parametrize(
    ("more", "places"),
    [({"temperature": 0}, (1, 40)), ({"temperature": 0.8, "seed": 7}, (17,))],
    ids=["greedy", "seeded"],
)
def test_a_worker_that_is_killed_in_mid_answer_leaves_no_trace_in_the_text(
    gateway: Gateway, more: dict[str, Any], places: tuple[int, ...]
) -> None:
    with gateway.client() as client:
        undisturbed = streamed(client, ask(**more))
        for at in places:
            assert streamed(client, ask(**more), at=at, strike=lambda: kill_busy(gateway)) == undisturbed


def test_a_connection_that_is_cut_leaves_no_trace_in_the_text(gateway: Gateway) -> None:
    def cut_all() -> None:
        for way in gateway.ways.values():
            way.strike("cut")

    with gateway.client() as client:
        undisturbed = streamed(client, ask())
        assert streamed(client, ask(), at=20, strike=cut_all) == undisturbed


def test_a_gateway_that_is_told_to_end_finishes_what_runs(rbee: Rbee, gateway: Gateway) -> None:
    """Another keeper's, for the one that runs has the home of the other tests."""
    rbee.inventory.write_text(gateway.nodes["one"].inventory(tags='["far"]'))
    with serving(rbee) as (running, address), httpx.Client(base_url=address, timeout=PATIENCE_S) as client:

        def end() -> None:
            running.process.send_signal(signal.SIGTERM)

        assert streamed(client, ask(max_tokens=40), at=5, strike=end)
        assert running.finish().status == 0
