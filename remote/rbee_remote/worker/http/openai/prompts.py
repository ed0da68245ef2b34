"""Texts and tokens in the forms of llama-server: mixed with each other, or in objects."""

from __future__ import annotations

from typing import Any

from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.messages import text_of
from rbee_remote.worker.requests.prompt import check_text
from rbee_remote.worker.service.service import Service


def is_one(given: Any) -> bool:
    """Whether a list is one text or one row of tokens, and no list of them."""
    return not isinstance(given, list) or any(type(item) is int for item in given)


async def with_plain_prompts(service: Service, data: Any, field: str) -> Any:
    """The body with what `field` holds as texts and lists of tokens. Waits for the model only where tokens and text
    stand in one row.

    Raises RemoteError USAGE naming the field, WORKER_GONE, or why the load failed.
    """
    given = data.get(field) if isinstance(data, dict) else None
    if not isinstance(given, (list, dict)):
        return data
    if is_one(given):
        return {**data, field: await _plain(service, field, given)}
    return {**data, field: [await _plain(service, f"{field}[{at}]", each) for at, each in enumerate(given)]}


async def _plain(service: Service, where: str, given: Any) -> Any:
    """Of one prompt. What is neither stays as it is, to be refused."""
    if isinstance(given, dict):
        return _text(where, given)
    if not isinstance(given, list) or not any(isinstance(each, str) for each in given):
        return given
    tokens: list[int] = []
    first = True
    for at, each in enumerate(given):
        if isinstance(each, str):
            check_text(f"{where}[{at}]", each)
            tokens += await service.tokenize(each, alone=not first)
        elif type(each) is int:
            tokens.append(each)
        else:
            raise wrong(f"{where}[{at}]", "must be a token or a text")
        first = False
    return tokens


def _text(where: str, given: dict[str, Any]) -> Any:
    if given.get("multimodal_data"):
        raise wrong(f"{where}.multimodal_data", "this worker reads text alone")
    if "prompt_string" in given:
        return given["prompt_string"]
    if isinstance(given.get("content"), list):
        return text_of(f"{where}.content", given["content"])
    raise wrong(where, "must have a prompt_string, or content of text parts")
