"""The table of a worker's states: what it refuses, who writes a state, and the picture that is made from it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rbee_remote.hive.states import COMING, SERVING, TRANSITIONS, Event, ImpossibleEvent, next_state
from rbee_remote.protocol import WorkerState
from tools import worker_states

HIVE = Path(__file__).parents[4] / "remote/rbee_remote/hive"
WRITERS = {"record.py"}


def test_every_state_has_its_row_and_every_word_of_a_worker_is_an_event() -> None:
    assert set(TRANSITIONS) == set(WorkerState)
    said = {Event.says(state) for state in WorkerState}
    assert {event for event in Event if event not in said} == {Event.STOP, Event.EXIT, Event.CRASH}


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (WorkerState.LOADING, Event.SAYS_STARTING),
        (WorkerState.BUSY, Event.SAYS_LOADING),
        (WorkerState.IDLE, Event.SAYS_STARTING),
        (WorkerState.LOADING, Event.EXIT),
        (WorkerState.FAILED, Event.STOP),
        *((WorkerState.FAILED, Event.says(state)) for state in WorkerState),
    ],
)
def test_what_cannot_happen_is_refused(state: WorkerState, event: Event) -> None:
    with pytest.raises(ImpossibleEvent, match=state.value):
        next_state(state, event)


def test_a_worker_that_is_to_stop_stays_so_whatever_it_says() -> None:
    for state in WorkerState:
        assert next_state(WorkerState.STOPPING, Event.says(state)) is WorkerState.STOPPING


def test_whoever_is_not_over_can_be_stopped_and_can_crash() -> None:
    for state in (*COMING, *SERVING, WorkerState.STOPPING):
        assert next_state(state, Event.STOP) is WorkerState.STOPPING
        assert next_state(state, Event.CRASH) is WorkerState.FAILED


def test_a_record_is_written_by_its_own_methods_alone() -> None:
    """So that the table is all there is to know of a state, and the rule at the head of `record` is true."""
    (record,) = [node for node in ast.walk(_parsed("record.py")) if isinstance(node, ast.ClassDef)]
    fields = {ast.unparse(node.target) for node in record.body if isinstance(node, ast.AnnAssign)}
    assert "state" in fields
    found = [
        f"{path.name}:{target.lineno}"
        for path in sorted(HIVE.rglob("*.py"))
        if path.name not in WRITERS
        for target in _written(ast.parse(path.read_text()))
        if target.attr in fields and isinstance(target.value, ast.Name) and target.value.id in ("worker", "record")
    ]
    assert found == []


def test_the_picture_in_the_docs_is_the_tables() -> None:
    page = worker_states.PAGE.read_text()
    assert page == worker_states.page_with_diagram(page), "run python -m tools.worker_states"


def _parsed(name: str) -> ast.Module:
    return ast.parse((HIVE / name).read_text())


def _written(tree: ast.Module) -> list[ast.Attribute]:
    """Attributes that are assigned to, also as one of several."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
