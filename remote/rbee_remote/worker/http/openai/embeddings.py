"""Embeddings: texts or tokens to vectors of length 1, several at once in the worker's slots."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import math
import struct
import uuid
from typing import Any

from rbee_remote.protocol import Served
from rbee_remote.system.caller import Caller
from rbee_remote.worker.http.answers.waiting import all_or_none
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.requests.prompt import check_text
from rbee_remote.worker.service.service import Service

#: OpenAI's own limit.
MOST_INPUTS = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingsBody:
    """dimensions: of the vectors, None for all that the model has."""

    model: str = ""
    input: Any = None
    encoding_format: str = "float"
    dimensions: int | None = None


def read(data: Any) -> EmbeddingsBody:
    """Raises RemoteError USAGE naming the field."""
    body = fields.read(EmbeddingsBody, data)
    if body.encoding_format not in ("float", "base64"):
        raise wrong("encoding_format", "must be float or base64")
    if body.dimensions is not None and body.dimensions < 1:
        raise wrong("dimensions", f"must be 1 or more, got {body.dimensions}")
    return body


async def embed(service: Service, body: EmbeddingsBody, caller: Caller) -> dict[str, Any]:
    """The answer. Raises RemoteError: USAGE naming the field, and what `Service.embed` raises."""
    inputs = fields.texts_or_tokens("input", body.input)
    if len(inputs) > MOST_INPUTS:
        raise wrong("input", f"must hold {MOST_INPUTS} texts at most, got {len(inputs)}")
    for value in inputs:
        if isinstance(value, str):
            check_text("input", value)
    places = asyncio.Semaphore(service.config.slots)  # the queue is for others too

    async def one(value: str | tuple[int, ...]) -> tuple[int, list[float]]:
        async with places:
            tokens = await service.tokenize(value) if isinstance(value, str) else value
            vector = await service.embed(tokens)
            service.metrics.embedded(len(tokens))
            return len(tokens), _shortened(vector, body.dimensions)

    with service.keep_alive.leased(caller.keeper):
        results = await all_or_none(one(value) for value in inputs)
    tokens = sum(count for count, _ in results)
    service.state.served(Served(uuid.uuid4().hex, caller.keeper, caller.who, tokens, 0, "embedding"))
    return {
        "object": "list",
        "model": service.config.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, (_, vector) in enumerate(results)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first dimensions alone, of length 1 again, which is what models trained for it mean by fewer."""
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise wrong("dimensions", f"must be {len(vector)} at most for this model, got {dimensions}")
    head = vector[:dimensions]
    length = math.sqrt(sum(value * value for value in head)) or 1.0
    return [value / length for value in head]


def _encoded(vector: list[float], form: str) -> list[float] | str:
    """base64: of the numbers as 4-byte floats, little end first."""
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
