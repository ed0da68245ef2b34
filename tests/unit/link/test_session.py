from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from rbee.base.errors import ElsewhereError
from rbee.link.session import Session, Terminal
from tests.patience import PATIENCE_S


async def test_a_client_that_left_is_not_waited_for_when_its_standard_input_is_wanted() -> None:
    end = Terminal(terminal=False, encoding="utf-8", columns=None, environ={})
    session = Session(MagicMock(), MagicMock(), Path("/"), end, end)
    session.gone()
    with pytest.raises(ElsewhereError):
        await asyncio.wait_for(asyncio.to_thread(session.standard_input), PATIENCE_S)
