"""An answer as a client of the gateway has it: what was said, how it ended, and when its lines came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

WHOLE = "whole"


@dataclass
class Choice:
    """tokens: as far as they were told, with their probabilities to three digits."""

    text: str = ""
    calls: str = ""
    tokens: list[tuple[str, float]] = field(default_factory=list)
    finish: str = ""

    def take(self, data: dict[str, Any]) -> None:
        """A choice of a stream's line, or of an answer that is no stream."""
        said = data.get("delta") or data.get("message") or data
        self.text += said.get("content") or said.get("text") or ""
        for call in said.get("tool_calls") or ():
            self.calls += (call["function"].get("name") or "") + (call["function"].get("arguments") or "")
        for token in (data.get("logprobs") or {}).get("content") or ():
            self.tokens.append((token["token"], round(token["logprob"], 3)))
        self.finish = data.get("finish_reason") or self.finish


@dataclass
class Heard:
    """end: WHOLE; "error CODE" within the stream, "status N CODE" instead of it; else what is no end.

    choices: by number. used: tokens of prompt and answer, as told. at: seconds on the monotonic clock of each line.
    """

    end: str = "without an end"
    choices: dict[int, Choice] = field(default_factory=dict)
    used: tuple[int, int] = (0, 0)
    at: list[float] = field(default_factory=list)

    @property
    def is_said(self) -> bool:
        """Whether the client was told how it ended."""
        return self.end == WHOLE or self.end.startswith(("error ", "status "))

    @property
    def said(self) -> tuple[object, ...]:
        """All but the time it took. Two answers that are one have the same."""
        return self.end, sorted(self.choices.items(), key=lambda each: each[0]), self.used, len(self.at)

    def take(self, data: dict[str, Any]) -> None:
        for choice in data.get("choices") or ():
            self.choices.setdefault(choice["index"], Choice()).take(choice)
        if usage := data.get("usage"):
            self.used = usage["prompt_tokens"], usage["completion_tokens"]


async def hear(
    client: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    *,
    request_id: str = "",
    on_line: Callable[[Heard], object] = bool,
) -> Heard:
    """Ask, and hear the answer to its end. on_line: called after each line of a stream."""
    heard = Heard()
    try:
        headers = {"X-Request-Id": request_id} if request_id else {}
        async with client.stream("POST", path, json=body, headers=headers) as response:
            if response.status_code != 200:
                heard.end = _refusal(response.status_code, await response.aread())
            elif not body.get("stream"):
                heard.take(json.loads(await response.aread()))
                heard.end = WHOLE
            else:
                await _follow(response, heard, on_line)
    except httpx.RemoteProtocolError as error:  # after an error event the connection just closes
        heard.end = heard.end if heard.is_said else f"broken: {error}"
    except httpx.HTTPError as error:
        heard.end = f"broken: {type(error).__name__} {error}"
    return heard


async def _follow(response: httpx.Response, heard: Heard, on_line: Callable[[Heard], object]) -> None:
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        heard.at.append(time.monotonic())
        if heard.is_said:
            heard.end = f"went on after {heard.end}"
        elif line == "data: [DONE]":
            heard.end = WHOLE
        elif error := (data := json.loads(line.removeprefix("data: "))).get("error"):
            heard.end = f"error {error.get('code')}"
        else:
            heard.take(data)
            on_line(heard)


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"status {status} {json.loads(body)['error']['code']}"
    except (ValueError, LookupError, TypeError):
        return f"refused with {status}, but no error: {body[:200]!r}"
