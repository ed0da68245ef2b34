"""Embeddings: texts or tokens to vectors of length 1, several at once in the worker's slots."""

from __future__ import annotations

import base64
import dataclasses
import math
import struct
import uuid
from typing import Any, Protocol

from rbee_remote.protocol import AdapterScale, Served
from rbee_remote.system.caller import Caller
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.requests.prompt import check_text
from rbee_remote.worker.service.service import Service

#: OpenAI's own limit.
MOST_INPUTS = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingsBody:
    """dimensions: of the vectors, None for all that the model has. truncate, truncate_prompt_tokens: whether longer
    texts are cut, and to how many tokens, -1 for as many as the model takes. lora: as of other bodies."""

    model: str = ""
    input: Any = None
    encoding_format: str = "float"
    dimensions: int | None = None
    truncate: bool = False
    truncate_prompt_tokens: int | None = None
    lora: tuple[AdapterScale, ...] | None = None


def read(data: Any) -> EmbeddingsBody:
    """Raises RemoteError USAGE naming the field."""
    body = fields.read(EmbeddingsBody, data)
    if body.encoding_format not in ("float", "base64"):
        raise wrong("encoding_format", "must be float or base64")
    if body.dimensions is not None and body.dimensions < 1:
        raise wrong("dimensions", f"must be 1 or more, got {body.dimensions}")
    truncation(body)
    return body


class Truncated(Protocol):
    """A body whose texts may be cut."""

    @property
    def truncate(self) -> bool: ...
    @property
    def truncate_prompt_tokens(self) -> int | None: ...


def truncation(body: Truncated) -> int | None:
    """As `Service.embed` takes it. Raises RemoteError USAGE."""
    most = body.truncate_prompt_tokens
    if most is None:
        return 0 if body.truncate else None
    if most < -1 or most == 0:
        raise wrong("truncate_prompt_tokens", f"must be 1 or more, or -1 for what the model takes, got {most}")
    return max(0, most)


async def embed(service: Service, body: EmbeddingsBody, caller: Caller) -> dict[str, Any]:
    """The answer. Raises RemoteError: USAGE naming the field, and what `Service.embed` raises."""
    inputs = fields.texts_or_tokens("input", body.input)
    if len(inputs) > MOST_INPUTS:
        raise wrong("input", f"must hold {MOST_INPUTS} texts at most, got {len(inputs)}")
    for value in inputs:
        if isinstance(value, str):
            check_text("input", value)
    with service.keep_alive.leased(caller.keeper):
        results = await service.texts.embed(inputs, truncation(body), body.lora, background=caller.background)
    for result in results:
        service.metrics.embedded(result.tokens)
    tokens = sum(result.tokens for result in results)
    service.state.served(Served(uuid.uuid4().hex, caller.keeper, caller.who, tokens, 0, "embedding"))
    vectors = (_shortened(result.values, body.dimensions) for result in results)
    return {
        "object": "list",
        "model": service.config.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
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
