"""What a worker serves for clients of its own, by POST; each also without /v1. A gateway starts no worker for anything
else: what it starts is of its own version."""

from __future__ import annotations

#: Those of the worker's routes that take a POST and are not rbee's own; a test compares them.
SERVED = frozenset(
    {
        "/v1/apply-template",
        "/v1/chat/completions",
        "/v1/completion",
        "/v1/completions",
        "/v1/detokenize",
        "/v1/embeddings",
        "/v1/infill",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/reranking",
        "/v1/responses",
        "/v1/tokenize",
    }
)


def is_served(path: str) -> bool:
    """Whether a worker of this version takes a POST there."""
    return path in SERVED or f"/v1{path}" in SERVED
