"""What a job took: its tokens, and times in llama-server's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rbee_remote.protocol import TrackedUsage


@dataclasses.dataclass
class Taken:
    """Tokens of prompts, those that were computed before, and generated ones. prompt_s: seconds to an answer's first
    token. generate_s: from there to its last; steps: as many tokens took that time."""

    cached: int = 0
    prompt: int = 0
    prompt_s: float = 0.0
    generated: int = 0
    generate_s: float = 0.0
    steps: int = 0

    def encode(self) -> dict[str, Any]:
        computed = self.prompt - self.cached
        return {
            "cache_n": self.cached,
            "prompt_n": computed,
            **_times("prompt", computed, self.prompt_s),
            "predicted_n": self.generated,
            **_times("predicted", self.steps, self.generate_s),
        }


class Summary:
    """Of a job, as its events tell of it. warnings: what of the requests could not be honoured as asked, each once."""

    def __init__(self, warnings: Iterable[str] = ()) -> None:
        self.warnings = list(warnings)
        self._prompt = 0
        self._cached = 0
        self._all = Taken()

    def started(self, data: dict[str, Any], part: Taken, *, counts_prompt: bool) -> None:
        part.prompt, part.cached = data["prompt_tokens"], data["reused_tokens"]
        if counts_prompt:
            self._prompt += part.prompt
            self._cached += part.cached
        self.warnings += [warning for warning in data["warnings"] if warning not in self.warnings]

    def done(self, data: dict[str, Any], part: Taken) -> None:
        part.generated = data["usage"]["completion_tokens"]
        part.steps = max(0, part.generated - 1)
        part.prompt_s, part.generate_s = data["timings"]["prompt_s"], data["timings"]["generate_s"]
        for field in dataclasses.fields(Taken):
            setattr(self._all, field.name, getattr(self._all, field.name) + getattr(part, field.name))

    @property
    def tokens(self) -> TrackedUsage:
        """A prompt that several choices share counts once."""
        return TrackedUsage(self._prompt, self._cached, self._all.generated)

    def timings(self) -> dict[str, Any]:
        """Of all choices together."""
        return self._all.encode()


def _times(name: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / seconds if tokens and seconds else 0.0,
    }
