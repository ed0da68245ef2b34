"""Which targets can serve what a request asks for."""

from __future__ import annotations

import pytest

from rbee.gateway.base.views import NodeState, NodeView, Target
from rbee.gateway.routing.able import able
from rbee_remote.protocol import LoadOptions, ModelInfo, ModelMeta


def info(ref: str, architecture: str, pooling: str = "") -> ModelInfo:
    meta = ModelMeta(architecture, 2, 512, 32, 100, 2, 16, 16, pooling=pooling)
    return ModelInfo(ref, f"/{ref}", 1, "", True, "", 0.0, meta)


MODELS = {
    ref: info(ref, *what) for ref, what in {"chat": ("llama",), "bge": ("bert",), "rr": ("qwen3", "rank")}.items()
}
NODES = (NodeView("gpu1", NodeState.UP, models=MODELS),)


@pytest.mark.parametrize(
    ("refs", "path", "kept", "words"),
    [
        (["chat"], "/v1/chat/completions", ["chat"], ""),
        (["chat"], "/v1/embeddings", ["chat"], ""),
        (["bge"], "/v1/embeddings", ["bge"], ""),
        (["bge"], "/v1/chat/completions", [], "bge only embeds texts"),
        (["bge", "chat"], "/chat/completions", ["chat"], "bge only embeds texts"),
        (["rr"], "/v1/rerank", ["rr"], ""),
        (["rr"], "/v1/embeddings", [], "rr only ranks documents"),
        (["chat"], "/v1/rerank", [], "it is no reranker"),
        (["bge"], "/v1/tokenize", ["bge"], ""),
        (["unknown"], "/v1/rerank", ["unknown"], ""),
        (["bge-m3:567m"], "/v1/messages", [], "bge-m3:567m only embeds texts"),
        (["bge-m3:567m"], "/v1/embeddings", ["bge-m3:567m"], ""),
        (["bge-reranker-v2-m3", "qwen3:8b"], "/v1/completions", ["qwen3:8b"], "bge-reranker-v2-m3 only ranks"),
        (["qwen3:8b"], "/v1/rerank", [], "it is no reranker"),
    ],
)
def test_able(refs: list[str], path: str, kept: list[str], words: str) -> None:
    targets, why = able([Target(ref, ("gpu1",)) for ref in refs], NODES, path)
    assert [target.model for target in targets] == kept
    assert words in why
    assert bool(why) is bool(words)


@pytest.mark.parametrize("turned", [False, True])
def test_a_name_that_means_another_file_on_each_node_is_kept_where_one_can_serve(turned: bool) -> None:
    nodes = [NodeView(str(n), NodeState.UP, models={"m": info("m", what)}) for n, what in enumerate(("llama", "bert"))]
    targets, why = able([Target("m", ("0", "1"))], reversed(nodes) if turned else nodes, "/v1/chat/completions")
    assert ([target.model for target in targets], why) == (["m"], "")


@pytest.mark.parametrize(
    ("ref", "path", "ability"),
    [
        ("hf:a/b", "/v1/chat/completions", "chat"),
        ("hf:a/b", "/v1/embeddings", "embeddings"),
        ("hf:a/b", "/v1/tokenize", ""),
        ("chat", "/v1/chat/completions", ""),
        ("qwen3:8b", "/v1/chat/completions", ""),
    ],
)
def test_what_only_the_file_will_tell_is_asked_of_whoever_brings_it(ref: str, path: str, ability: str) -> None:
    (target,), _ = able([Target(ref, ("gpu1",))], NODES, path)
    assert target.ability == ability


@pytest.mark.parametrize(
    ("ref", "pooling", "path", "is_kept"),
    [
        ("chat", "last", "/v1/chat/completions", False),
        ("chat", "last", "/v1/embeddings", True),
        ("chat", "rank", "/v1/rerank", True),
        ("rr", "none", "/v1/chat/completions", True),
        ("rr", "auto", "/v1/chat/completions", False),
        ("hf:a/b", "cls", "/v1/chat/completions", False),
        ("hf:a/b", "cls", "/v1/embeddings", True),
        ("hf:a/b", "none", "/v1/chat/completions", True),
    ],
)
@pytest.mark.parametrize("by_node", [False, True])
def test_what_is_said_of_a_models_pooling_decides(
    ref: str, pooling: str, path: str, is_kept: bool, by_node: bool
) -> None:
    load = LoadOptions(pooling=pooling)
    nodes = (NodeView("gpu1", NodeState.UP, models=MODELS, load=load),) if by_node else NODES
    targets, why = able([Target(ref, ("gpu1",), LoadOptions() if by_node else load)], nodes, path)
    if by_node and ref == "hf:a/b":  # another node may say something else of it
        assert targets
        return
    assert (bool(targets), bool(why)) == (is_kept, not is_kept)
    assert all(not target.ability for target in targets), "what was said is not asked of the file"
