"""`rbee infer` on a bare node: from nothing to the first token, then warm; and what stdout is good for."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode

pytestmark = [pytest.mark.container, pytest.mark.model]

QUESTION = "Why is the sky blue?"


def test_a_bare_node_answers_and_the_second_time_it_is_warm(rbee: Rbee, ssh_node: Callable[..., ContainerNode]) -> None:
    node = ssh_node()
    rbee.inventory.write_text(node.inventory())

    cold = rbee("infer", "--node", "gpu1", "--json", "--max-tokens", "24", "--seed", "1", QUESTION)
    assert phases(cold.lines()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert cold.lines()[-1]["usage"]["completion_tokens"] == 24
    assert node.listening_tcp() == []

    warm = rbee("infer", "--node", "gpu1", "--json", "--max-tokens", "24", QUESTION)
    assert phases(warm.lines()) == [1, 8]
    assert warm.lines()[-1]["timings"]["probe_s"] is None
    assert len(node.pids("worker")) == 1
    assert node.exec("stat -c %a $(find /tmp -path '*/rbee-*' -type s | head -1)").strip() == "600"
    assert registry_row(rbee, "gpu1") == ("smollm2:135m", "cpu", True, True, True)

    rbee("hive", "stop", "gpu1")
    node.assert_quiet()


def test_tokens_come_one_by_one(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    with shared_rbee.start("infer", "--node", "gpu1", "--max-tokens", "64", "--seed", "7", QUESTION) as running:
        result = running.finish()
    assert result.status == 0, result.stderr
    pieces = [piece for _, piece in running.stdout]
    assert len(pieces) >= 16
    assert max(map(len, pieces)) < len(result.stdout.encode()) / 2
    arrivals = [moment for moment, _ in running.stdout]
    assert arrivals[-1] > arrivals[0]


def test_json_is_one_object_a_line(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    result = shared_rbee("infer", "--node", "gpu1", "--json", "--max-tokens", "16", "--seed", "3", QUESTION)
    assert result.stderr == ""
    events = result.lines()
    tokens = [event for event in events if event["event"] == "token"]
    assert "".join(token["text"] for token in tokens).strip()
    assert [token["tokens"] for token in tokens] == sorted(token["tokens"] for token in tokens)
    finished = events[-1]
    assert finished["event"] == "finished"
    assert (finished["node"], finished["model"]) == ("gpu1", "smollm2:135m")
    assert finished["usage"]["completion_tokens"] == tokens[-1]["tokens"]
    assert finished["timings"]["first_token_s"] > 0


def test_timing_names_what_it_measured(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    result = shared_rbee("infer", "--node", "gpu1", "--timing", "--max-tokens", "8", QUESTION)
    for measured in ("connect", "authenticate", "first token", "tokens/s"):
        assert measured in result.stderr
    assert "tokens/s" not in result.stdout


def test_a_piped_prompt_gives_a_clean_file(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    result = shared_rbee("infer", "--node", "gpu1", "--max-tokens", "8", "--seed", "5", stdin=f"{QUESTION}\n")
    assert result.stdout.strip()
    assert "\x1b" not in result.stdout
    assert "\x1b" not in result.stderr
    assert "inference" not in result.stdout


def test_the_same_seed_gives_the_same_answer(shared_rbee: Rbee, warm_node: ContainerNode) -> None:
    words = ("infer", "--node", "gpu1", "--max-tokens", "16", "--seed", "11", QUESTION)
    assert shared_rbee(*words).stdout == shared_rbee(*words).stdout


def test_a_bare_node_with_a_noisy_shell_where_sshd_forbids_forwarding(
    rbee: Rbee, ssh_node: Callable[..., ContainerNode]
) -> None:
    """More logins and settings, on a node that is set up, are in test_hard_logins.py."""
    node = ssh_node(user="bee-noisy", sshd=["AllowStreamLocalForwarding=no", "AllowTcpForwarding=no"])
    rbee.inventory.write_text(node.inventory())
    result = rbee("infer", "--node", "gpu1", "--max-tokens", "8", QUESTION)
    assert result.stdout.strip()
    assert "Welcome" not in result.stdout
    assert rbee("infer", "--node", "gpu1", "--max-tokens", "8", QUESTION).stdout.strip()
    rbee("hive", "stop", "gpu1")
    node.assert_quiet()


def test_ten_at_once_share_one_bootstrap_one_hive_and_one_worker(
    rbee: Rbee, ssh_node: Callable[..., ContainerNode]
) -> None:
    from contextlib import ExitStack

    node = ssh_node()
    rbee.inventory.write_text(node.inventory())
    words = ("infer", "--node", "gpu1", "--json", "--max-tokens", "16", "--temperature", "0", QUESTION)
    with ExitStack() as stack:
        commands = [stack.enter_context(rbee.start(*words)) for _ in range(10)]
        results = [command.finish() for command in commands]
    assert [result.status for result in results] == [0] * 10, [result.stdout[-300:] for result in results]
    answers = {answer(result.lines()) for result in results}
    assert len(answers) == 1
    assert answers.pop().strip()
    assert {result.lines()[-1]["usage"]["completion_tokens"] for result in results} == {16}
    assert len({result.lines()[-1]["worker"] for result in results}) == 1
    assert len(node.pids("hive")) == 1
    assert len(node.pids("worker")) == 1
    assert node.exec("ls -d /home/bee/.rbee/node/runtimes/*/bin/python | wc -l").strip() == "1"
    rbee("hive", "stop", "gpu1")
    node.assert_quiet()


def phases(events: list[dict[str, object]]) -> list[object]:
    return [event["phase"] for event in events if event.get("event") == "phase"]


def answer(events: list[dict[str, str]]) -> str:
    return "".join(event["text"] for event in events if event["event"] == "token")


def registry_row(rbee: Rbee, node: str) -> tuple[object, ...]:
    """Model and backend, and whether socket, slots and times are filled in."""
    from contextlib import closing

    with closing(sqlite3.connect(rbee.home / "workers.db")) as database:
        database.row_factory = sqlite3.Row
        (row,) = database.execute("select * from workers where node = ?", (node,)).fetchall()
    assert row["state"] in {"idle", "ready"}
    times = row["created_at"] <= row["last_seen_at"]
    return row["model"], row["backend"], row["socket"].endswith(".sock"), row["slots"] == 4, times
