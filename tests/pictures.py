"""Pictures in the docs that are made from tables of states, so that neither can say what the other does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
ARCHITECTURE = Path(__file__).parents[1] / "docs/architecture.md"


def mermaid(transitions: Mapping[S, Mapping[E, S]]) -> str:
    """A state diagram of states and events, beginning with the first state; states and events by their values."""
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(transitions)).value}"]
    for state, row in transitions.items():
        for target in dict.fromkeys(row.values()):
            events = [event.value for event, leads_to in row.items() if leads_to is target]
            lines.append(f"    {state.value} --> {target.value} : {', '.join(events)}")
        if not row:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join(lines)


def in_docs(section: str) -> str:
    """The mermaid block of a section of docs/architecture.md."""
    found = re.search(
        rf"^## {re.escape(section)}$.*?^```mermaid\n(.*?)\n```$",
        ARCHITECTURE.read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert found, f"docs/architecture.md has no picture in a section {section!r}"
    return found[1]
