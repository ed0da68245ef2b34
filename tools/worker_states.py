"""`python -m tools.worker_states`: draw the table of a worker's states into docs/architecture.md.

Needs `remote` on the path, as in the environment that `make dev` makes. tests/unit/remote/hive/test_states.py says when
the picture is no longer the table's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rbee_remote.hive.states import SERVING, TRANSITIONS
from rbee_remote.protocol import WorkerState

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
BEGIN, END = "<!-- worker states: made by tools/worker_states.py -->\n", "<!-- end of worker states -->"


def diagram() -> str:
    """Mermaid. The three states in which a worker serves are drawn as one, because the same can happen in each; what
    changes nothing is left out."""
    labels: dict[tuple[str, str], list[str]] = {}
    for state, row in TRANSITIONS.items():
        for event, following in row.items():
            if _box(state) != _box(following):
                events = labels.setdefault((_box(state), _box(following)), [])
                events.extend([event.value] if event.value not in events else [])
    lines = [f"{state} --> {following}: {_joined(events)}" for (state, following), events in labels.items()]
    head, tail = ["[*] --> starting", *_serving()], ["stopping --> [*]: exits", "failed --> [*]: a minute later"]
    return "stateDiagram-v2\n" + "".join(f"    {line}\n" for line in (*head, *lines, *tail))


def _serving() -> Iterator[str]:
    rows = [TRANSITIONS[state] for state in SERVING]
    assert rows[0] == rows[1] == rows[2], "they cannot be drawn as one any more"
    yield "state serving {"
    for state in SERVING:
        yield from (f"    {state.value} --> {other.value}" for other in SERVING if other is not state)
    yield "}"


def _box(state: WorkerState) -> str:
    return "serving" if state in SERVING else state.value


def _joined(events: list[str]) -> str:
    """`says idle`, `says busy`, `exits` as `says idle or busy, exits`."""
    said = [event.removeprefix("says ") for event in events if event.startswith("says ")]
    rest = [event for event in events if not event.startswith("says ")]
    if said:
        rest.insert(0, "says " + ", ".join(said[:-1]) + " or " * (len(said) > 1) + said[-1])
    return ", ".join(rest)


def page_with_diagram(page: str) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n```mermaid\n{diagram()}```\n\n{END}{after}"


def main() -> None:
    PAGE.write_text(page_with_diagram(PAGE.read_text()))


if __name__ == "__main__":
    main()
