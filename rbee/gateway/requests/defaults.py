"""What an alias of the inventory adds to a request that does not say it itself. Pure."""

from __future__ import annotations

from typing import Any

from rbee.gateway.requests.errors import Form, form_of
from rbee.inventory.aliases import ModelAlias

#: Names that one setting has: a request that says any of them has said it.
_SYNONYMS = (
    frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"}),
    frozenset({"repeat_penalty", "repetition_penalty"}),
    frozenset({"penalty_last_n", "repeat_last_n"}),
)


def with_defaults(body: dict[str, Any], alias: ModelAlias | None, path: str) -> dict[str, Any]:
    """The body with the alias's system prompt and sampling where it has none of its own; `body` itself, unchanged,
    where nothing is to be added. A null counts as left out, as it does for the worker."""
    if alias is None or not _generates(body, path):
        return body
    added = {
        name: value for name, value in alias.sampling.items() if all(body.get(each) is None for each in _names_of(name))
    }
    if alias.system:
        added |= _system(body, alias.system, path)
    return {**body, **added} if added else body


def _generates(body: dict[str, Any], path: str) -> bool:
    return "messages" in body or "prompt" in body or form_of(path) is Form.RESPONSES


def _names_of(name: str) -> frozenset[str]:
    return next((names for names in _SYNONYMS if name in names), frozenset({name}))


def _system(body: dict[str, Any], system: str, path: str) -> dict[str, Any]:
    """The fields that give a chat its system prompt, none for one that has one, or that is none."""
    form, messages = form_of(path), body.get("messages")
    if form is Form.RESPONSES:
        return {} if body.get("instructions") else {"instructions": system}
    if not isinstance(messages, list):
        return {}
    if form is Form.ANTHROPIC:
        return {} if body.get("system") else {"system": system}
    if any(isinstance(each, dict) and each.get("role") in ("system", "developer") for each in messages):
        return {}
    return {"messages": [{"role": "system", "content": system}, *messages]}
