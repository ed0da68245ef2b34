"""What a model can be asked for, by what its GGUF file says of itself. Standard library alone.

Three kinds of models: those that generate; those that embed, a text to a vector; those that rank, a query and a
document to a score. References are to llama.cpp: src/llama-model.cpp (create_memory, load_hparams), include/llama.h.
"""

from __future__ import annotations

import dataclasses

CHAT, COMPLETIONS, EMBEDDINGS, RERANK = "chat", "completions", "embeddings", "rerank"
#: What is no model, and only changes one.
ADAPTER = "adapter"
#: What to do where it was taken for a model.
ADAPTER_HINT = "name that model, and this one as its adapter"

#: Architectures without a KV cache, whose tokens see each other in both directions: they read and do not write.
ENCODERS = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe",
})  # fmt: skip

#: llama.cpp's numbers (enum llama_pooling_type) for how one vector is made of those of a text's tokens.
POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: "rank"}

#: What may be said of it where the file says nothing, or the wrong thing: nothing, one of those, or that it generates.
SAID_POOLINGS = ("auto", *POOLINGS.values(), "none")

#: Paths of a worker's routes for each ability.
_PATHS = {CHAT: "/v1/chat/completions", COMPLETIONS: "/v1/completions", EMBEDDINGS: "/v1/embeddings",
          RERANK: "/v1/rerank"}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """What a model is made for. pooling: one of POOLINGS' words, "" for a model that generates.

    whole: a text has to be computed in one step. cacheless: there is no KV cache, so that sequences cost nothing.
    """

    pooling: str = ""
    whole: bool = False
    cacheless: bool = False


def use_of(architecture: str, pooling_type: int | None, *, causal: bool = True) -> Use:
    """pooling_type: of the file's key `{architecture}.pooling_type`, None where it has none, as of models that
    generate; an encoder that does not say takes the mean. causal: `{architecture}.attention.causal`."""
    cacheless = architecture in ENCODERS
    whole = cacheless or not causal
    pooling = POOLINGS.get(pooling_type or 0, "mean" if whole else "")
    return Use(pooling, whole, cacheless)


def pooled(pooling: str, said: str | None) -> str:
    """The pooling of a model of which somebody said another. pooling: as in `Use`. said: one of SAID_POOLINGS, None for
    auto."""
    return pooling if said in (None, "auto") else "" if said == "none" else str(said)


def abilities(architecture: str, pooling: str) -> tuple[str, ...]:
    """What can be asked for, the first for what the model is there. pooling: as in `Use`, or "" while unknown."""
    if pooling == "rank":
        return (RERANK,)
    return (EMBEDDINGS,) if pooling or architecture in ENCODERS else (CHAT, COMPLETIONS, EMBEDDINGS)


def abilities_of(kind: str) -> tuple[str, ...]:
    """As `abilities`, of a model that a list of models calls a chat, an embedding or a rerank model."""
    return {"embedding": (EMBEDDINGS,), "rerank": (RERANK,)}.get(kind, (CHAT, COMPLETIONS, EMBEDDINGS))


def refusal(model: str, able: tuple[str, ...], asked: str) -> str:
    """Why a model is not asked for `asked`, one of the words here, with what it serves instead; "" where it can be."""
    if not able or asked in able:
        return ""
    if ADAPTER in able:
        return f"{model} is a LoRA adapter and no model: it is loaded beside the model that it was made for"
    does = "embeds texts" if EMBEDDINGS in able else "ranks documents"
    if CHAT in able:
        return f"{model} does not rank documents: it is no reranker"
    return f"{model} only {does} ({_PATHS[able[0]]}); it cannot serve {_PATHS[asked]}"


def asked_by(path: str) -> str:
    """The ability that a request to `path`, with or without /v1, is about; "" for none of them."""
    bare = path.removeprefix("/v1")
    if bare in ("/rerank", "/reranking"):
        return RERANK
    if bare == "/embeddings":
        return EMBEDDINGS
    if bare in ("/completions", "/completion", "/infill"):
        return COMPLETIONS
    chats = ("/chat/completions", "/responses", "/messages", "/messages/count_tokens", "/apply-template")
    return CHAT if bare in chats else ""
