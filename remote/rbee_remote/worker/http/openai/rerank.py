"""Reranking: a query and documents to scores, in the form of Jina and Cohere, or in TEI's where `texts` are given.

A score is what the model gives (llama-server does the same): a number without bounds of most rerankers, a probability
of Qwen3's. `raw_scores: false` puts a sigmoid over the numbers of the first kind, which keeps their order.
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from typing import Any

from rbee_remote.protocol import AdapterScale, Served
from rbee_remote.system.caller import Caller
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.embeddings import MOST_INPUTS, truncation
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.requests.prompt import check_text
from rbee_remote.worker.service.service import Service


@dataclasses.dataclass(frozen=True, slots=True)
class RerankBody:
    """texts, return_text: TEI's names for documents and return_documents. top_n: results, None for all. truncate,
    truncate_prompt_tokens, lora: as of embeddings, of query and document together. max_tokens_per_doc: of a
    document."""

    model: str = ""
    query: Any = None
    documents: Any = None
    texts: Any = None
    top_n: int | None = None
    return_documents: bool = False
    return_text: bool = False
    raw_scores: bool = True
    truncate: bool = False
    truncate_prompt_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    lora: tuple[AdapterScale, ...] | None = None


def read(data: Any) -> RerankBody:
    """Raises RemoteError USAGE naming the field."""
    body = fields.read(RerankBody, data)
    if not isinstance(body.query, str):
        raise wrong("query", "must be a text")
    check_text("query", body.query)
    for field in ("top_n", "max_tokens_per_doc"):
        value = getattr(body, field)
        if value is not None and value < 1:
            raise wrong(field, f"must be 1 or more, got {value}")
    documents(body)
    truncation(body)
    return body


def documents(body: RerankBody) -> list[str]:
    """Raises RemoteError USAGE naming the field."""
    field = "texts" if body.documents is None and body.texts is not None else "documents"
    given = getattr(body, field)
    if not isinstance(given, list) or not given:
        raise wrong(field, "must be a list of texts, or of objects with a text, with at least one")
    if len(given) > MOST_INPUTS:
        raise wrong(field, f"must hold {MOST_INPUTS} documents at most, got {len(given)}")
    return [_text(f"{field}[{index}]", each) for index, each in enumerate(given)]


def _text(field: str, given: Any) -> str:
    text = given.get("text") if isinstance(given, dict) else given
    if not isinstance(text, str):
        raise wrong(field, "must be a text, or an object with a text")
    check_text(field, text)
    return text


async def rerank(service: Service, body: RerankBody, caller: Caller) -> tuple[Any, int]:
    """The answer, and how many tokens were read. Raises what `Service.rank` does."""
    texts = documents(body)
    with service.keep_alive.leased(caller.keeper):
        results = await service.texts.rank(
            body.query, texts, truncation(body), body.max_tokens_per_doc, body.lora, background=caller.background
        )
    for result in results:
        service.metrics.embedded(result.tokens)
    tokens = sum(result.tokens for result in results)
    request_id = uuid.uuid4().hex
    service.state.served(Served(request_id, caller.keeper, caller.who, tokens, 0, "rerank"))
    scores = [(_shown(result.values, raw=body.raw_scores), index) for index, result in enumerate(results)]
    scores.sort(key=lambda each: -each[0])  # of equal ones the first document comes first
    best = scores[: body.top_n]
    if body.texts is not None and body.documents is None:
        return [
            {"index": i, "score": score} | ({"text": texts[i]} if body.return_text else {}) for score, i in best
        ], tokens
    answer = {
        "id": f"rerank-{request_id}",
        "object": "list",
        "model": service.config.model,
        "results": [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": texts[index]}} if body.return_documents else {})
            for score, index in best
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return answer, tokens


def _shown(values: list[float], *, raw: bool) -> float:
    """values: of one class, or a probability for each of several, the first of which is yes."""
    score = values[0]
    if raw or len(values) > 1:
        return score
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
