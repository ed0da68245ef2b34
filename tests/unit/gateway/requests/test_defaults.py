"""What an alias adds to a body, and that it adds nothing to one that says it itself."""

from __future__ import annotations

from typing import Any

import pytest

from rbee.gateway.requests.defaults import with_defaults
from rbee.inventory.aliases import ModelAlias

ALIAS = ModelAlias("chat", "smollm2:135m", system="Be brief.", sampling={"temperature": 0.2, "max_tokens": 9})
SAMPLING = {"temperature": 0.2, "max_tokens": 9}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
CHAT, MESSAGES, RESPONSES, TEXT = "/v1/chat/completions", "/v1/messages", "/responses", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "added"),
    [
        (CHAT, {"messages": [USER]}, {"messages": [SYSTEM, USER], **SAMPLING}),
        (CHAT, {"messages": [SYSTEM, USER]}, SAMPLING),
        (CHAT, {"messages": [{"role": "developer", "content": "x"}, USER]}, SAMPLING),
        (CHAT, {"messages": "no list"}, SAMPLING),
        (CHAT, {"messages": [USER], "temperature": 0}, {"messages": [SYSTEM, USER], "max_tokens": 9}),
        (CHAT, {"messages": [SYSTEM], "temperature": None}, SAMPLING),
        (CHAT, {"messages": [SYSTEM], "max_completion_tokens": 5}, {"temperature": 0.2}),
        (MESSAGES, {"messages": [USER], "max_tokens": 5}, {"system": "Be brief.", "temperature": 0.2}),
        (MESSAGES, {"messages": [USER], "system": [{"type": "text", "text": "x"}]}, SAMPLING),
        (RESPONSES, {"input": "Hi"}, {"instructions": "Be brief.", **SAMPLING}),
        (RESPONSES, {"input": "Hi", "instructions": "x"}, SAMPLING),
        (TEXT, {"prompt": "Hi"}, SAMPLING),
        ("/v1/embeddings", {"input": "Hi"}, {}),
    ],
)
def test_what_is_added(path: str, body: dict[str, Any], added: dict[str, Any]) -> None:
    assert with_defaults(body, ALIAS, path) == {**body, **added}


@pytest.mark.parametrize("alias", [None, ModelAlias("chat", "smollm2:135m")])
def test_a_body_to_which_nothing_is_added_is_the_same(alias: ModelAlias | None) -> None:
    body = {"messages": [USER]}
    assert with_defaults(body, alias, CHAT) is body
