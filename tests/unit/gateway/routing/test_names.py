"""What a request's `model` means, and what there is to list."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import NodeError
from rbee.gateway.base.views import NodeState, Target
from rbee.gateway.routing.names import ModelEntry, Resolved, listing, resolve
from rbee.inventory import Inventory, parse
from rbee_remote.protocol import ErrorCode, LoadOptions
from tests.unit.gateway.views import MODEL, OTHER, node_view, worker_view

HF = "hf:Owner/Repo:Q4_K_M@main"
PATH = "file:/models/x.gguf"
INVENTORY = """
[nodes.gpu1]
tags = ["cuda"]
[nodes.gpu2]
tags = ["cuda", "lab"]
model = "qwen2.5:0.5b"
[nodes.local]
[models.chat]
model = "hf:Owner/Repo:Q4_K_M@main"
nodes = ["local", "@lab"]
ctx = 8192
keep_alive = "1h"
fallbacks = ["small", "qwen2.5:0.5b"]
[models.small]
model = "smollm2:135M"
[models.gpt-4o]
model = "llama3.2:1b"
"""
NODES = (
    node_view("gpu1", [worker_view("gpu1", ctx=2048), worker_view("gpu1", 2, ctx=8192)], tags=frozenset({"cuda"})),
    node_view("gpu2", models=[OTHER, PATH, HF], tags=frozenset({"cuda", "lab"})),
    node_view("local", models=["company-model:7b"], state=NodeState.DOWN),
)
ALL = ("gpu1", "gpu2", "local")


def inventory(text: str = INVENTORY) -> Inventory:
    return parse(text.encode(), Path("/etc/inventory.toml"))


def meaning(asked: str | None, *allowed: str) -> Resolved:
    return resolve(asked, inventory(), NODES, frozenset(allowed))


@pytest.mark.parametrize(
    ("asked", "model", "nodes"),
    [
        ("smollm2:135m", MODEL, ALL),
        (" SmolLM2:135M ", MODEL, ALL),
        ("llama3.2:3b", "llama3.2:3b", ALL),
        ("hf:Owner/Repo:Q4_K_M@main", HF, ALL),
        ("HF:Owner/Repo:Q4_K_M@main", HF, ALL),
        ("hf:Owner/Repo:Q4_K_M@main@cuda", HF, ("gpu1", "gpu2")),
        ("smollm2:135m@gpu2", MODEL, ("gpu2",)),
        ("smollm2:135m@lab", MODEL, ("gpu2",)),
        ("company-model:7b", "company-model:7b", ALL),
        ("file:/models/./x.gguf", PATH, ("gpu2",)),
        ("file:/models/x.gguf@gpu2", PATH, ("gpu2",)),
        ("gpt-4o", "llama3.2:1b", ALL),
        ("gpt-4o@local", "llama3.2:1b", ("local",)),
    ],
)
def test_a_name_is_read_as_what_exists(asked: str, model: str, nodes: tuple[str, ...]) -> None:
    found = meaning(asked)
    assert (found.asked, found.targets[0].model, found.targets[0].nodes) == (asked.strip(), model, nodes)


def test_an_alias_is_its_model_on_its_nodes_and_then_what_it_falls_back_to() -> None:
    found = meaning("chat")
    assert found.alias == inventory().models["chat"]
    assert found.name == "chat"
    assert found.targets == (
        Target(HF, ("gpu2", "local"), LoadOptions(ctx=8192), 3600.0),
        Target(MODEL, ALL),
        Target(OTHER, ALL),
    )


def test_an_alias_at_a_node_falls_back_to_what_can_be_there() -> None:
    assert [target.nodes for target in meaning("chat@local").targets] == [("local",)] * 3
    assert [target.model for target in meaning("chat@gpu1").targets] == [MODEL, OTHER]


def test_no_name_is_the_model_of_each_nodes_entry() -> None:
    for asked in (None, "", " "):
        found = meaning(asked)
        assert found.targets == (Target(MODEL, ("gpu1", "local")), Target(OTHER, ("gpu2",)))
        assert found.name == MODEL


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("smolm2:135m", "'?smollm2:135m"),
        ("gpt-4", "gpt-4o"),
        ("hf:Owner/Other", "there are|did you mean"),
        ("hf:Owner/Repo:Q4_K_M", "did you mean hf:Owner/Repo:Q4_K_M@main"),
        ("file:/etc/passwd", "there are|did you mean"),
        ("https://example.org/x.gguf", "there are|did you mean"),
        ("@gpu1", "there are|did you mean"),
        ("../../etc", "there are|did you mean"),
        ("smollm2:135m@gpu3", "nodes and tags: gpu1, gpu2, local, cuda, lab"),
        ("file:/models/x.gguf@gpu1", "leave out @gpu1"),
        ("x" * 5000, "there are"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(asked: str, hint: str) -> None:
    with pytest.raises(NodeError) as caught:
        meaning(asked)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    assert len(caught.value.message) < 300
    assert re.search(hint, caught.value.hint), caught.value.hint


def test_a_ref_that_nobody_named_is_told_why_it_is_not_fetched() -> None:
    with pytest.raises(NodeError, match="no node has 'hf:Owner/Other', and the inventory does not name it"):
        meaning("hf:Owner/Other")


def test_a_key_for_models_that_are_not_here_is_told_so() -> None:
    with pytest.raises(NodeError) as caught:
        meaning("smollm2:135m", "smolm2:135m")
    assert caught.value.hint == "the API key is for models alone that are not here"


def test_a_client_with_models_of_its_own_has_no_others() -> None:
    assert meaning("chat", "chat").name == "chat"
    assert meaning("chat@local", "chat").name == "chat"
    assert meaning("smollm2:135m", "SMOLLM2:135M").name == MODEL
    for asked, allowed in (("smollm2:135m", "small"), ("small", "smollm2:135m"), ("chat@gpu1", "small"), ("", "chat")):
        with pytest.raises(NodeError) as caught:
            meaning(asked, allowed)
        assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
        assert "gpt-4o" not in caught.value.hint
    assert [entry.name for entry in listing(inventory(), NODES, frozenset({"chat", MODEL}))] == ["chat", MODEL]


def test_a_client_may_fall_back_with_an_alias_it_may_use() -> None:
    assert len(meaning("chat", "chat").targets) == 3


def test_the_list_has_aliases_and_what_the_catalogs_have() -> None:
    entries = {entry.name: entry for entry in listing(inventory(), NODES)}
    assert list(entries) == ["chat", "small", "gpt-4o", "company-model:7b", PATH, HF, OTHER, MODEL]
    assert entries[MODEL] == ModelEntry(
        name=MODEL,
        model=MODEL,
        nodes=("gpu1",),
        loaded=("gpu1",),
        ctx=8192,
        trained_ctx=8192,
        size=10**8,
        capabilities=("chat", "completions", "embeddings"),
        quantization="Q8_0",
        added_at=1000.0,
    )
    assert (entries["chat"].model, entries["chat"].nodes, entries["chat"].loaded) == (HF, ("gpu2",), ())
    assert entries["chat"].is_alias
    assert entries["gpt-4o"] == ModelEntry("gpt-4o", "llama3.2:1b", is_alias=True)


def test_an_adapter_is_no_model_to_list() -> None:
    node = node_view("gpu1", models=[OTHER, PATH])
    adapter = replace(node.models[PATH], meta=replace(node.models[PATH].meta, adapter=True))
    entries = listing(inventory("[nodes.gpu1]\n"), [replace(node, models={**node.models, PATH: adapter})])
    assert [entry.name for entry in entries] == [OTHER]


def test_an_alias_named_like_a_ref_takes_its_place() -> None:
    own = inventory("[nodes.gpu1]\n[models.'smollm2:135m']\nmodel = 'qwen2.5:0.5b'\nctx = 512\n")
    nodes = (node_view("gpu1"), node_view("local"))
    assert resolve(MODEL, own, nodes).targets[0].model == OTHER
    assert [entry.model for entry in listing(own, nodes)] == [OTHER]


def test_a_worker_of_a_node_that_is_down_counts_as_gone() -> None:
    nodes = (node_view("gpu1", [worker_view("gpu1")], state=NodeState.DOWN),)
    assert listing(inventory(), nodes)[-1].loaded == ()


def test_an_alias_whose_model_is_no_ref_is_not_there() -> None:
    own = inventory("[models.bad]\nmodel = 'no ref at all'\n")
    with pytest.raises(NodeError):
        resolve("bad", own, (node_view("local"),))
    assert [entry.name for entry in listing(own, (node_view("local"),))] == [MODEL]


@given(st.text(max_size=40))
def test_any_text_has_a_meaning_or_is_refused(asked: str) -> None:
    try:
        found = meaning(asked)
    except NodeError as error:
        assert error.code is ErrorCode.MODEL_NOT_FOUND
    else:
        assert found.targets
