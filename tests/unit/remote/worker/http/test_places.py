"""Errors and warnings name a field as the client's body has it."""

from __future__ import annotations

import pytest

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.worker.http.answers.places import renamed, renamed_line

PLACES = {"tools[0].function": "tools[2]", "tools[0].function.parameters": "tools[2].input_schema"}


@pytest.mark.parametrize(
    ("field", "here"),
    [
        ("tools[0].function.parameters", "tools[2].input_schema"),
        ("tools[0].function.parameters.a", "tools[2].input_schema.a"),
        ("tools[0].function.name", "tools[2].name"),
        ("tools[0].function", "tools[2]"),
        ("tools[0].functions", "tools[0].functions"),
        ("tools[1].function.name", "tools[1].function.name"),
        ("stop", "stop"),
    ],
)
def test_a_field_has_the_name_of_the_body(field: str, here: str) -> None:
    error = RemoteError(ErrorCode.USAGE, f"{field}: is wrong", hint="h", details={"field": field, "more": 1})
    told = renamed(error, PLACES)
    assert (told.code, told.message, told.hint) == (ErrorCode.USAGE, f"{here}: is wrong", "h")
    assert told.details == {"field": here, "more": 1}
    assert renamed_line(f"{field}: is not enforced", PLACES) == f"{here}: is not enforced"


def test_an_error_of_no_field_stays() -> None:
    error = RemoteError(ErrorCode.USAGE, "tools[0].function is wrong")
    assert renamed(error, PLACES) is error
