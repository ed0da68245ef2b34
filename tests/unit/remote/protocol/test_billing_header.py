"""A line that changes with each request costs nothing of what follows it."""

from __future__ import annotations

from typing import Any

import pytest

from rbee_remote.protocol.billing_header import system_without_header, without_header
from rbee_remote.protocol.prompt_digest import prompt_digests

HEADER = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=sdk-cli; cch="


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"{HEADER}36ee5;", ""),
        (f"{HEADER}36ee5", ""),
        (f"{HEADER}36ee5;\nYou are", "You are"),
        (f"{HEADER}36ee5;You are a=b;", "You are a=b;"),
        (f" \n{HEADER}36ee5; \n\nYou are", "You are"),
        ("x-anthropic-billing-header:", ""),
        (f"You are {HEADER}1;", f"You are {HEADER}1;"),
        ("", ""),
    ],
)
def test_what_is_left_of_a_system_prompt(text: str, left: str) -> None:
    assert without_header(text) == left


@pytest.mark.parametrize("system", [None, 5, {"text": HEADER}, [5, {"text": 5}]])
def test_what_is_no_system_prompt_stays(system: Any) -> None:
    assert system_without_header(system) == system


@pytest.mark.parametrize("in_blocks", [True, False])
def test_digests_are_those_of_the_prompt_without_it(in_blocks: bool) -> None:
    def body(cch: str) -> dict[str, Any]:
        texts = [f"{HEADER}{cch};", "You are helpful. " * 60] if cch else ["You are helpful. " * 60]
        system = [{"type": "text", "text": text} for text in texts] if in_blocks else "\n".join(texts)
        return {"system": system, "messages": [{"role": "user", "content": "hi"}]}

    assert prompt_digests(body("36ee5")) == prompt_digests(body("0aaa9")) == prompt_digests(body(""))
    assert prompt_digests(body("1"))
