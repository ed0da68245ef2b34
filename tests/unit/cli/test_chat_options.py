"""What `rbee infer` makes of the options about the chat, and what it refuses before anything is connected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import UsageError
from rbee.cli.chat_options import read_chat
from rbee_remote.protocol import ChatOptions, Message, ToolOptions
from rbee_remote.protocol.limits import MAX_TEMPLATE

WEATHER = {"name": "get_weather", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": WEATHER}


#: What can be enforced in part.
OPEN = {"contains": {"type": "string"}}


def file_with(folder: Path, content: Any) -> Path:
    path = folder / "tools.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_nothing_said_is_the_templates_default() -> None:
    chat = read_chat()
    assert (chat.options, chat.tools, chat.prefill) == (ChatOptions(), ToolOptions(), "")
    assert chat.messages("Hi") == (Message("user", "Hi"),)


def test_an_answer_that_is_begun_is_a_last_message_to_be_continued() -> None:
    chat = read_chat(system="s", prefill=" 1. ")
    assert chat.messages("Hi") == (Message("system", "s"), Message("user", "Hi"), Message("assistant", " 1. "))
    assert chat.options == ChatOptions(continue_final=True)


def test_reasoning() -> None:
    assert read_chat(think=False).options == ChatOptions(think=False)
    assert read_chat(think=True, think_budget=5).options == ChatOptions(think=True, think_budget=5)
    assert read_chat(reasoning_effort="none").options == ChatOptions(reasoning_effort="none")
    chat = read_chat(think=True, think_budget=0, reasoning_effort="low")
    assert chat.options == ChatOptions(think=True, think_budget=0, reasoning_effort="low")


def test_a_template_and_its_variables(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}")
    words = [
        "thinking=true",
        "documents=[1, 2]",
        "date=1 May",
        "name=",
        'quoted="a=b"',
        "number=NaN",
        "deep=" + "[" * 99999,
    ]
    chat = read_chat(template=path, template_arg=words)
    assert chat.options.template == "{{ messages }}"
    assert chat.options.template_kwargs == {
        "thinking": True,
        "documents": [1, 2],
        "date": "1 May",
        "name": "",
        "quoted": "a=b",
        "number": "NaN",
        "deep": "[" * 99999,
    }


@pytest.mark.parametrize(
    ("tools", "functions"),
    [
        ([TOOL], (TOOL,)),
        ([WEATHER], (TOOL,)),
        (
            [{"name": "now", "description": None, "strict": True}],
            ({"type": "function", "function": {"name": "now", "strict": True}},),
        ),
    ],
    ids=["in OpenAI's form", "bare", "with nulls"],
)
def test_tools(tools: list[Any], functions: tuple[Any, ...], tmp_path: Path) -> None:
    assert read_chat(tools=file_with(tmp_path, tools)).tools == ToolOptions(functions)


def test_which_tool(tmp_path: Path) -> None:
    path = file_with(tmp_path, [WEATHER, {"name": "auto"}])
    assert read_chat(tools=path, tool_choice="required").tools.choice == "required"
    assert read_chat(tools=path, tool_choice="none").tools.choice == "none"
    assert read_chat(tools=path, tool_choice="auto").tools.only == ()
    named = read_chat(tools=path, tool_choice="get_weather").tools
    assert (named.choice, named.only) == ("required", ("get_weather",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"raw": True, "template": Path("x")}, "--raw takes the prompt as it is; --template needs the chat template"),
        ({"raw": True, "tools": Path("x")}, "--raw takes the prompt as it is; --tools needs"),
        ({"raw": True, "think": False}, "--raw takes the prompt as it is; --no-think needs"),
        ({"raw": True, "think_budget": 0}, "--raw takes the prompt as it is; --think-budget needs"),
        ({"raw": True, "prefill": "x"}, "--raw takes the prompt as it is; --prefill needs"),
        ({"raw": True, "template_arg": ["a=1"]}, "--raw takes the prompt as it is; --template-arg needs"),
        ({"prefill": ""}, "--prefill is empty"),
        ({"prefill": " \n"}, "--prefill is empty"),
        ({"prefill": "\udcff"}, "--prefill is not UTF-8 text"),
        ({"reasoning_effort": ""}, "--reasoning-effort is empty"),
        ({"think": False, "think_budget": 5}, "--no-think and --think-budget were given"),
        ({"think": False, "reasoning_effort": "low"}, "--no-think and --reasoning-effort were given"),
        ({"think": True, "reasoning_effort": "none"}, "--reasoning-effort none and --think were given"),
        ({"think_budget": 5, "reasoning_effort": "None"}, "--reasoning-effort none and --think-budget were given"),
        ({"think": True, "prefill": "x"}, "--prefill and --think were given"),
        ({"think_budget": 5, "prefill": "x"}, "--prefill and --think-budget were given"),
        ({"tool_choice": "auto"}, "--tool-choice says which of --tools"),
        ({"template": Path("none.jinja")}, "--template: cannot read none.jinja"),
        ({"template_arg": ["a"]}, "--template-arg: 'a' is not KEY=VALUE"),
        ({"template_arg": ["=1"]}, "--template-arg: '=1' is not KEY=VALUE"),
        ({"template_arg": ["a b=1"]}, "--template-arg: 'a b=1' is not KEY=VALUE"),
        ({"template_arg": ["a=1", "a=2"]}, "--template-arg: a was given twice"),
        ({"template_arg": ["a=\udcff"]}, "--template-arg is not UTF-8 text"),
        ({"template_arg": ["messages=[]"]}, "--template-arg: messages is what the prompt says"),
        ({"template_arg": ["bos_token=x"]}, "--template-arg: bos_token cannot be set"),
        ({"template_arg": ["continue_final_message=true"]}, "--template-arg: continue_final_message is what --prefill"),
        ({"template_arg": ["enable_thinking=false"]}, "--template-arg: enable_thinking is what --think or --no-think"),
    ],
)
def test_what_cannot_be_is_refused_in_the_options_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_chat(**given)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(("text", "message"), [(" \n", "is empty"), ("x" * (MAX_TEMPLATE + 1), "has more than")])
def test_files_that_are_no_template(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_chat(template=path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_chat(template=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 99999, "is nested too deeply"),
        ({}, "is not a list of functions"),
        ([], "is not a list of functions"),
        (["get_weather"], "[0] is not a function"),
        ([WEATHER, {"type": "custom", "name": "x"}], "[1] is not a function"),
        ([{"function": "get_weather"}], "[0] is not a function"),
        ([{"description": "x"}], "[0] has no name"),
        ([{"name": " "}], "[0] has no name"),
        ([{"name": "get weather"}], "[0]: name has to be 1 to 64 letters, digits, _ or -"),
        ([WEATHER, {"name": "f", "strict": True, "parameters": OPEN}], "[1]: parameters cannot be used: #: contains"),
        ([{"name": 1}], "[0]: name has to be text"),
        ([{"name": "f", "description": 1}], "[0]: description has to be text"),
        ([{"name": "f", "parameters": []}], "[0]: parameters has to be a JSON schema"),
        ([{"name": "f", "strict": "yes"}], "[0]: strict has to be true or false"),
        ([WEATHER, TOOL], "has two functions 'get_weather'"),
    ],
)
def test_files_that_hold_no_tools(content: Any, message: str, tmp_path: Path) -> None:
    path = file_with(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        read_chat(tools=path)
    assert caught.value.message.startswith(f"--tools: {path}")
    assert message in caught.value.message


def test_parameters_are_checked_where_a_call_is_made_to_fit_them(tmp_path: Path) -> None:
    path = file_with(tmp_path, [{"name": "f", "parameters": {"type": "nope"}}, {"name": "g", "parameters": OPEN}])
    for choice in (None, "none", "g"):
        assert len(read_chat(tools=path, tool_choice=choice).tools.functions) == 2
    for choice in ("required", "f"):
        with pytest.raises(UsageError, match=r"^--tools: .*\[0\]: parameters cannot be used: #: type must be"):
            read_chat(tools=path, tool_choice=choice)


def test_a_function_that_is_not_there_is_not_chosen(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tool-choice: 'get_wether' is neither") as caught:
        read_chat(tools=file_with(tmp_path, [WEATHER]), tool_choice="get_wether")
    assert caught.value.hint == "did you mean 'get_weather'?"
