"""An error of a node's in the keeper's words."""

from __future__ import annotations

import pytest

from rbee.base.errors import NodeError
from rbee_remote.protocol import ErrorCode, RemoteError


@pytest.mark.parametrize(("hint", "expected"), [("", "use --raw to send"), ("say it otherwise", "say it otherwise")])
def test_what_to_do_about_a_chat_template_is_said_at_the_keyboard(hint: str, expected: str) -> None:
    remote = RemoteError(ErrorCode.USAGE, "refused", hint=hint, details={"about": "chat_template", "field": "messages"})
    error = NodeError.from_remote(remote)
    assert error.hint.startswith(expected)
    assert error.details == {"field": "messages"}


def test_other_errors_stay_as_they_are() -> None:
    assert NodeError.from_remote(RemoteError(ErrorCode.USAGE, "refused")).hint == ""
