"""Models from a hub: the real huggingface_hub client on the node, or at the keeper, against a hub with bad days."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import gguf_split
from tests.hub import COMMIT, Hub, Trouble, running_hub
from tests.patience import PATIENCE_S
from tests.testbed.cli import Rbee
from tests.testbed.node import ContainerNode
from tests.tls import server_context

pytestmark = pytest.mark.model

REPO = "bees/Tiny-GGUF"
FILE = "tiny-Q4_1.gguf"
REF = f"hf:{REPO}:Q4_1"
TOKEN = "hf_secretsecretsecret"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Of every hub of this module: the hive that all tests share trusts what it began with."""
    return server_context(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(model_path: Path, identity: tuple[ssl.SSLContext, Path]) -> Iterator[Hub]:
    with running_hub(tls=True, identity=identity) as started:
        # The built-in model, but another file: one that the keeper has already would not be fetched.
        started.add(REPO, FILE, model_path.read_bytes() + bytes(32))
        yield started


def test_a_corrupt_file_of_the_right_size_is_never_registered(shared_rbee: Rbee, hub: Hub) -> None:
    hub.trouble = Trouble(corrupt=True)
    result = shared_rbee("models", "pull", "local", REF, "--json", status=6, env=hub.env)
    assert result.lines()[-1]["error"]["code"] == "DOWNLOAD_FAILED"
    assert shared_rbee("models", "list", "local", "--json").json() == []


def test_a_token_is_used_and_never_shown(shared_rbee: Rbee, hub: Hub) -> None:
    hub.token = TOKEN
    env = {**hub.env, "HF_TOKEN": TOKEN}
    pulled = shared_rbee("models", "pull", "local", REF, "-v", env=env)
    assert TOKEN not in pulled.stdout + pulled.stderr
    logs = [path for path in shared_rbee.home.rglob("*") if path.is_file() and path.suffix in {".log", ".json", ".db"}]
    assert logs
    assert [path for path in logs if TOKEN.encode() in path.read_bytes()] == []
    for process in shared_rbee.node_processes():
        assert TOKEN not in " ".join(process.cmdline())
        assert TOKEN not in str(process.environ())
    shared_rbee("models", "rm", "local", REF)


def test_a_download_that_breaks_goes_on_where_it_stopped(shared_rbee: Rbee, hub: Hub) -> None:
    hub.trouble = Trouble(cut_after=20_000_000, times=2)
    pulled = shared_rbee("models", "pull", "local", REF, "--json", env=hub.env).lines()[-1]
    assert pulled["size"] == len(hub.files[REPO][FILE])
    assert COMMIT in pulled["source"]
    ranges = [seen.headers.get("Range", seen.headers.get("range")) for seen in hub.content_requests()]
    assert any(value and not value.startswith("bytes=0-") for value in ranges), ranges
    assert shared_rbee("infer", "--model", REF, "--max-tokens", "4", "Hello", env=hub.env).stdout.strip()


def test_a_split_model_is_one_model_and_answers_as_the_whole_file_does(
    shared_rbee: Rbee, hub: Hub, model_path: Path, tmp_path: Path
) -> None:
    parts = gguf_split.split(model_path, tmp_path, 3)
    for part in parts:
        hub.add("bees/Split-GGUF", f"Q4_1/{part.name}", part.read_bytes())
    size = sum(part.stat().st_size for part in parts)
    ref = "hf:bees/Split-GGUF:Q4_1"
    hub.trouble = Trouble(cut_after=size // 5, times=3)
    pulled = shared_rbee("models", "pull", "local", ref, "--json", env=hub.env).lines()[-1]
    assert (pulled["parts"], pulled["size"]) == (3, size)
    listed = [model["model"] for model in shared_rbee("models", "list", "local", "--json").json()]
    assert [each for each in listed if "Split" in each] == [ref]
    (shown,) = shared_rbee("models", "show", ref, "--json").json()["models"]
    assert shown["info"]["meta"]["parameters"] > 100_000_000
    shared_rbee("models", "pull", "local", REF, env=hub.env)
    question = ("--temperature", "0", "--max-tokens", "24", "Name three rivers of Europe.")
    answers = {model: shared_rbee("infer", "--model", model, *question, env=hub.env).stdout for model in (ref, REF)}
    assert answers[ref].strip()
    assert answers[ref] == answers[REF]
    hub.commits["bees/Split-GGUF"] = "f" * 40
    hub.add("bees/Split-GGUF", f"Q4_1/{parts[2].name}", parts[2].read_bytes() + bytes(32))
    assert "newer" in shared_rbee("models", "pull", "local", ref, env=hub.env).stderr
    newest = shared_rbee("models", "pull", "local", ref, "--refresh", "--json", env=hub.env).lines()[-1]
    assert newest["size"] == size + 32
    for worker in shared_rbee("workers", "list", "local", "--json").json():
        shared_rbee("workers", "stop", worker["id"])
    for model in (ref, REF):
        shared_rbee("models", "rm", "local", model)
    deadline = time.monotonic() + PATIENCE_S  # those that were replaced go at the hive's next look
    while list(shared_rbee.home.rglob("*-of-00003.gguf")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.container
def test_the_keeper_downloads_for_a_node_without_a_way_out(
    shared_rbee: Rbee, warm_node: ContainerNode, hub: Hub
) -> None:
    shared_rbee("models", "pull", "gpu1", REF, env=hub.env)
    listed = shared_rbee("models", "list", "gpu1", "--json").json()
    assert {model["model"] for model in listed} >= {REF}
    assert hub.content_requests()
