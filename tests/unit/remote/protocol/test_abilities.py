"""What a model can be asked for."""

from __future__ import annotations

import pytest

from rbee_remote.protocol.abilities import ENCODERS, Use, abilities, asked_by, refusal, use_of

ALL = ("chat", "completions", "embeddings")


@pytest.mark.parametrize(
    ("architecture", "pooling_type", "causal", "use", "able"),
    [
        ("llama", None, True, Use(), ALL),
        ("qwen3", 0, True, Use(), ALL),
        ("qwen3", 3, True, Use("last"), ("embeddings",)),  # Qwen3-Embedding
        ("qwen3", 4, True, Use("rank"), ("rerank",)),  # Qwen3-Reranker
        ("qwen2", 3, False, Use("last", whole=True), ("embeddings",)),  # gte-Qwen2
        ("bert", 1, False, Use("mean", whole=True, cacheless=True), ("embeddings",)),
        ("bert", 2, False, Use("cls", whole=True, cacheless=True), ("embeddings",)),
        ("bert", 4, False, Use("rank", whole=True, cacheless=True), ("rerank",)),
        ("nomic-bert", None, True, Use("mean", whole=True, cacheless=True), ("embeddings",)),
        ("gemma-embedding", 0, True, Use("mean", whole=True, cacheless=True), ("embeddings",)),
        ("bert", 99, True, Use("mean", whole=True, cacheless=True), ("embeddings",)),
    ],
)
def test_use(architecture: str, pooling_type: int | None, causal: bool, use: Use, able: tuple[str, ...]) -> None:
    found = use_of(architecture, pooling_type, causal=causal)
    assert found == use
    assert abilities(architecture, found.pooling) == able


def test_encoders_are_known_without_their_pooling() -> None:
    assert {abilities(each, "") for each in ENCODERS} == {("embeddings",)}


@pytest.mark.parametrize(
    ("able", "asked", "words"),
    [
        (ALL, "chat", ""),
        (ALL, "rerank", "does not rank documents"),
        (("embeddings",), "embeddings", ""),
        (("embeddings",), "chat", "m only embeds texts (/v1/embeddings); it cannot serve /v1/chat/completions"),
        (("rerank",), "embeddings", "m only ranks documents (/v1/rerank)"),
        ((), "chat", ""),
        (("adapter",), "chat", "m is a LoRA adapter and no model"),
        (("adapter",), "rerank", "m is a LoRA adapter and no model"),
    ],
)
def test_refusal(able: tuple[str, ...], asked: str, words: str) -> None:
    told = refusal("m", able, asked)
    assert words in told
    assert bool(told) is bool(words)


@pytest.mark.parametrize(
    ("path", "ability"),
    [
        ("/v1/chat/completions", "chat"),
        ("/chat/completions", "chat"),
        ("/v1/responses", "chat"),
        ("/v1/completions", "completions"),
        ("/completion", "completions"),
        ("/v1/infill", "completions"),
        ("/v1/embeddings", "embeddings"),
        ("/rerank", "rerank"),
        ("/v1/reranking", "rerank"),
        ("/v1/tokenize", ""),
    ],
)
def test_what_a_path_asks_for(path: str, ability: str) -> None:
    assert asked_by(path) == ability
