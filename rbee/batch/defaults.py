"""What the command line adds to lines that do not say it themselves. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbee.batch.lines import CHAT, Ask

_GENERATES = frozenset({CHAT, "/v1/completions", "/v1/responses"})
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
#: Names by which a body says what form its answer is to have.
_FORMS = ("response_format", "json_schema", "grammar", "regex", "lark", "text", "structured_outputs",
          "guided_json", "guided_regex", "guided_choice", "guided_grammar")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Defaults:
    """model: for all lines, whatever they name; "" for each its own. system: "" for none. sampling: by the names that
    bodies have. form: one of json_schema, grammar, regex, lark with its value, or nothing."""

    model: str = ""
    system: str = ""
    max_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    form: Mapping[str, Any] = field(default_factory=dict)

    def body(self, ask: Ask) -> dict[str, Any]:
        """The body to be sent. A null counts as left out, as it does for workers."""
        said = {name: value for name, value in ask.body.items() if value is not None}
        if self.model:
            said["model"] = self.model
        if ask.path not in _GENERATES:
            return said
        added = {name: value for name, value in self.sampling.items() if name not in said}
        if self.max_tokens is not None and not any(name in said for name in _LIMITS):
            added["max_output_tokens" if ask.path == "/v1/responses" else "max_tokens"] = self.max_tokens
        if self.stop and "stop" not in said:
            added["stop"] = list(self.stop)
        if not any(name in said for name in _FORMS):
            added |= _form(ask.path, self.form)
        return {**said, **added, **self._system(ask.path, said)}

    def _system(self, path: str, said: Mapping[str, Any]) -> dict[str, Any]:
        if not self.system:
            return {}
        if path == "/v1/responses":
            return {} if said.get("instructions") else {"instructions": self.system}
        messages = said.get("messages")
        if path != CHAT or not isinstance(messages, list):
            return {}
        if any(isinstance(each, dict) and each.get("role") in ("system", "developer") for each in messages):
            return {}
        return {"messages": [{"role": "system", "content": self.system}, *messages]}


def _form(path: str, form: Mapping[str, Any]) -> Mapping[str, Any]:
    """Responses have a schema at another place, and no grammars."""
    if path == "/v1/responses" and "json_schema" in form:
        schema = {"type": "json_schema", "name": "answer", "schema": form["json_schema"], "strict": True}
        return {"text": {"format": schema}}
    return form
