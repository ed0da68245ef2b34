"""MiniMax M2 and DeepSeek V3.2."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.invoke import Invoke, InvokeBars, InvokeBars4
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

OPEN = "<think>\n"
ADD = Call("add", '{"a": 1}')
NOW = '<minimax:tool_call>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>'
WRITTEN = '<invoke name="add">\n<parameter name="a">1</parameter>\n</invoke>\n'
RUN = '<invoke name="run">\n<parameter name="code"> a\n"b" </parameter>\n</invoke>\n'

CASES = [
    Case("Hello", [Content("Hello")]),
    Case(f"Let's call:\n</think>\n\n{NOW}", [Reasoning("Let's call:"), Call("now")], prompt=OPEN),
    calls(f"<minimax:tool_call>\n{WRITTEN}</minimax:tool_call>", ADD),
    calls(f"<minimax:tool_call>\n{WRITTEN}{RUN}</minimax:tool_call>", ADD, Call("run", '{"code": " a\\n\\"b\\" "}')),
    calls('<minimax:tool_call><invoke name="run"><parameter name="code">ab', Call("run", '{"code": "ab')),
    Case(NOW.replace("now", "made_up"), [Content(NOW.replace("now", "made_up"))]),
]


def barred(text: str) -> str:
    """DeepSeek's tags."""
    outer = text.replace("minimax:tool_call", "function_calls").replace("<", "<|DSML|").replace("<|DSML|/", "</|DSML|")
    return outer.replace("|", "\uff5c").replace('name="a"', 'name="a" string="false"')


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Invoke(Think()), case)


def test_deepseeks_bars() -> None:
    check(InvokeBars(), calls(barred(f"<minimax:tool_call>\n{WRITTEN}{RUN}</minimax:tool_call>"),
                              ADD, Call("run", '{"code": " a\\n\\"b\\" "}')))  # fmt: skip


@pytest.mark.parametrize("family", [Invoke, InvokeBars, InvokeBars4])
def test_what_the_grammar_allows_is_read(family: type[Invoke]) -> None:
    check_grammar(family(Think()), opens=OPEN)
