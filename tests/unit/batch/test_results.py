"""Lines of the output: OpenAI's form, and all that a run which goes on has to know of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.batch.results import Known, Outcome, Run, known, line_of

RUN = Run("a" * 12, "b" * 12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_the_form_is_that_of_openais_batches() -> None:
    body = {"choices": [{"message": {"content": "né\n"}}]}
    outcome = Outcome(200, "r1", body, None, "gpu1", 2, 1.23456, 30, 20)
    line = line_of(RUN, 4, "mine", outcome)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "id": f"batch_req_{'a' * 12}_{'b' * 12}_4",
        "custom_id": "mine",
        "response": {"status_code": 200, "request_id": "r1", "body": body},
        "error": None,
        "rbee": {"node": "gpu1", "tries": 2, "seconds": 1.235, "tokens": 30},
    }


def test_a_line_that_was_never_asked_has_no_response() -> None:
    told = json.loads(line_of(RUN, 4, None, Outcome(error=("invalid_line", "it is not JSON"))))
    assert told["response"] is None
    assert told["error"] == {"code": "invalid_line", "message": "it is not JSON", "line": 4}


@given(
    number=st.integers(1, 10**12),
    custom_id=st.none() | st.text(),
    body=JSON,
    error=st.none() | st.tuples(st.text(max_size=20), st.text()),
    tokens=st.integers(0, 10**9),
    seconds=st.floats(0, 1e7),
)
def test_what_was_written_is_known_again(
    number: int, custom_id: str | None, body: Any, error: tuple[str, str] | None, tokens: int, seconds: float
) -> None:
    outcome = Outcome(200, "r", body, error, "gpu1", 1, seconds, tokens)
    line = line_of(RUN, number, custom_id, outcome)
    assert known(line) == Known(RUN, number, error is not None, tokens)
    for cut in (len(line) - 1, len(line) - 2, len(line) // 2):
        assert known(line[:cut]) is None


@pytest.mark.parametrize(
    "body",
    [
        {"error": None, "rbee": 1},
        {"error": {"message": "x"}},
        {"text": '"error":null,"rbee":{"node":"x","tries":1,"seconds":1.0,"tokens":1}}'},
    ],
)
@pytest.mark.parametrize("error", [None, ("USAGE", "wrong")])
def test_what_an_answer_says_of_errors_is_not_taken_for_the_lines_own(body: Any, error: tuple[str, str] | None) -> None:
    found = known(line_of(RUN, 1, "1", Outcome(200, "r", body, error, "n", 1, 0.0, 12)))
    assert found == Known(RUN, 1, error is not None, 12)


def test_the_longest_error_is_known() -> None:
    assert known(line_of(RUN, 1, "1", Outcome(error=("X", "\u20ac" * 5000)))) == Known(RUN, 1, failed=True, tokens=0)
