"""A network that fails in mid-answer, as a user meets it: the answer is the one of a good network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.proxy import ThreadedProxy, in_thread
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode

pytestmark = [pytest.mark.container, pytest.mark.model]

#: A seed has the worker compute the whole prompt each time, so that the likeliest tokens are the same to the last bit.
ASK = ("infer", "--node", "gpu1", "--temperature", "0", "--seed", "1", "--max-tokens", "120")
STORY = "Write a very long story about a bee who travels around the world."


@pytest.fixture
def proxy(shared_rbee: Rbee, warm_node: ContainerNode) -> Iterator[ThreadedProxy]:
    """Between the shared keeper and the warm node."""
    with in_thread((warm_node.host, warm_node.port)) as running:
        shared_rbee.inventory.write_text(warm_node.inventory(port=str(running.port)))
        yield running
        shared_rbee.inventory.write_text(warm_node.inventory())


def test_the_answer_is_whole_and_the_same(shared_rbee: Rbee, proxy: ThreadedProxy) -> None:
    undisturbed = shared_rbee(*ASK, STORY)
    with shared_rbee.start(*ASK, STORY) as running:
        running.wait_for_pieces(20)
        proxy.strike("half-open")
        result = running.finish()
    assert result.status == 0, result.stderr
    assert result.stdout == undisturbed.stdout
    assert "lost the connection to gpu1, reconnecting" in result.stderr
    assert "reconnected to gpu1" in result.stderr


def test_json_tells_each_token_once(shared_rbee: Rbee, proxy: ThreadedProxy) -> None:
    with shared_rbee.start("--json", *ASK, STORY) as running:
        running.wait_for_pieces(20)
        proxy.strike("cut")
        result = running.finish()
    events = result.lines()
    tokens = [event["tokens"] for event in events if event["event"] == "token"]
    assert [event["text"] for event in events if event["event"] == "notice"] == [
        "lost the connection to gpu1, reconnecting",
        "reconnected to gpu1",
    ]
    assert tokens == list(range(1, events[-1]["usage"]["completion_tokens"] + 1))


def test_ctrl_c_while_nothing_comes_frees_the_slot(shared_rbee: Rbee, proxy: ThreadedProxy) -> None:
    with shared_rbee.start("infer", "--node", "gpu1", "--max-tokens", "3000", "--seed", "1", STORY) as running:
        running.wait_for_pieces(5)
        proxy.strike("stall")
        running.interrupt()
        assert running.finish().status == 130
    (worker,) = shared_rbee("workers", "list", "--json").json()
    assert worker["slots_free"] == worker["slots"]
