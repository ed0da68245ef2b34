"""One answer of a chat completion: the events of a request as deltas, and as a message."""

from __future__ import annotations

from typing import Any

from rbee_remote.worker.http.openai.logprobs import of_chat
from rbee_remote.worker.http.openai.tools import ToolNames


class ChatChoice:
    """names: of the functions that are called. logprobs: whether they are told. inline: reasoning stands in the
    content, in the marks that most models have for it."""

    def __init__(self, index: int, names: ToolNames, *, logprobs: bool, inline: bool) -> None:
        self._index = index
        self._names = names
        self._logprobs: list[dict[str, Any]] | None = [] if logprobs else None
        self._inline = inline
        self._thinking = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._finish_reason = ""

    def opening(self) -> list[dict[str, Any]]:
        return [self._delta({"role": "assistant", "content": ""})]

    def feed(self, token: dict[str, Any]) -> list[dict[str, Any]]:
        text, reasoning, calls = token["text"], token.get("reasoning", ""), token.get("calls", ())
        if self._inline:
            text, reasoning = self._inlined(reasoning, text, ends=bool(text or calls)), ""
        delta: dict[str, Any] = {}
        if reasoning:
            self._reasoning.append(reasoning)
            delta["reasoning_content"] = reasoning
        if text:
            self._text.append(text)
            delta["content"] = text
        if calls:
            delta["tool_calls"] = self._called(calls)
        entry = None
        if token["logprobs"] is not None and self._logprobs is not None:
            entry = of_chat(token["logprobs"])
            self._logprobs.append(entry)
        if not delta and entry is None:
            return []
        return [self._delta(delta or {"content": ""}, entry)]

    def closing(self, finish_reason: str) -> list[dict[str, Any]]:
        self._finish_reason = finish_reason
        last = {**self._delta({}), "finish_reason": finish_reason}
        if not self._thinking:
            return [last]
        left = self._inlined("", "", ends=True)
        self._text.append(left)
        return [self._delta({"content": left}), last]

    def whole(self) -> dict[str, Any]:
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}

    def _called(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A delta's `tool_calls`, one entry for each call that something is said of."""
        entries: dict[int, dict[str, Any]] = {}
        for piece in calls:
            index, arguments = piece["index"], piece["arguments"]
            if piece["name"]:
                function = {"name": self._names.given(piece["name"]), "arguments": arguments}
                self._calls.append({"id": piece["id"], "type": "function", "function": dict(function)})
                entries[index] = {"index": index, "id": piece["id"], "type": "function", "function": function}
            else:
                self._calls[index]["function"]["arguments"] += arguments
                entry = entries.setdefault(index, {"index": index, "function": {"arguments": ""}})
                entry["function"]["arguments"] += arguments
        return list(entries.values())

    def _inlined(self, reasoning: str, text: str, *, ends: bool) -> str:
        """ends: the reasoning does, where there was some."""
        opening = "<think>" if reasoning and not self._thinking else ""
        self._thinking = self._thinking or bool(reasoning)
        closing = "</think>" if self._thinking and ends else ""
        self._thinking = self._thinking and not ends
        return f"{opening}{reasoning}{closing}{text}"

    def _delta(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if logprobs is None else {"content": [logprobs], "refusal": None}
        return {"index": self._index, "delta": delta, "logprobs": content, "finish_reason": None}
