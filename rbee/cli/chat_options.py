"""The options of `rbee infer` that say how the prompt becomes a chat: template, reasoning, tools, the answer's begin.

Whatever can be known to be wrong is refused here, before anything is connected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.constraints import read_text
from rbee.cli.options import EffortOption, SystemOption, ThinkOption, check_text
from rbee_remote.protocol import ChatOptions, Message, ToolOptions
from rbee_remote.protocol.limits import MAX_TEMPLATE, RESERVED_VARIABLES

#: Variables of a template that have an option, or are made of the messages.
_TAKEN = {
    "messages": "the prompt",
    "tools": "--tools",
    "enable_thinking": "--think or --no-think",
    "reasoning_effort": "--reasoning-effort",
    "add_generation_prompt": "--prefill",
    "continue_final_message": "--prefill",
}


@dataclass(frozen=True, slots=True)
class Chat:
    """raw: no chat at all, and nothing else is said. prefill: what the answer begins with, "" for nothing."""

    raw: bool = False
    system: str | None = None
    prefill: str = ""
    options: ChatOptions = field(default_factory=ChatOptions)
    tools: ToolOptions = field(default_factory=ToolOptions)

    def messages(self, prompt: str) -> tuple[Message, ...]:
        system = () if self.system is None else (Message("system", self.system),)
        begun = (Message("assistant", self.prefill),) if self.prefill else ()
        return (*system, Message("user", prompt), *begun)


def read_chat(
    system: SystemOption = None,
    prefill: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Begin the answer with this text, which is shown as a part of it."),
    ] = None,
    think: ThinkOption = None,
    think_budget: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="End the reasoning after this many tokens.")
    ] = None,
    reasoning_effort: EffortOption = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Functions that may be called, JSON in OpenAI's form. Calls are printed, one JSON a line; "
            "nothing is executed.",
        ),
    ] = None,
    tool_choice: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH", help="auto, required (at least one call), none, or the function to call. [default: auto]"
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A chat template (Jinja). [default: template in the inventory, or the model's own]"
        ),
    ] = None,
    template_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A variable for the template: JSON, or else text; may be repeated."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")] = False,
) -> Chat:
    """Raises UsageError that names the option."""
    given = {
        "--system": system,
        "--prefill": prefill,
        "--no-think" if think is False else "--think": think,
        "--think-budget": think_budget,
        "--reasoning-effort": reasoning_effort,
        "--tools": tools,
        "--tool-choice": tool_choice,
        "--template": template,
        "--template-arg": template_arg or None,
    }
    _check_together(raw, {option: value for option, value in given.items() if value is not None})
    if raw:
        return Chat(raw=True)
    options = ChatOptions(
        template="" if template is None else _template(template),
        template_kwargs=_variables(template_arg or ()),
        think=think,
        reasoning_effort=reasoning_effort or "",
        think_budget=think_budget,
        continue_final=True if prefill else None,
    )
    return Chat(False, system, prefill or "", options, ToolOptions() if tools is None else _tools(tools, tool_choice))


def _check_together(raw: bool, given: dict[str, Any]) -> None:
    """Raises UsageError for options of which one leaves the other without a meaning, and for empty texts."""
    for option, value in given.items():
        if raw:
            raise UsageError(
                f"--raw takes the prompt as it is; {option} needs the chat template", hint="leave out one of them"
            )
        if isinstance(value, str):
            check_text(option, value)
            if not value.strip() and option != "--system":
                raise UsageError(f"{option} is empty", hint="leave it out, or give some text")
    for one, other, why in (
        ("--no-think", "--think-budget", "there is no reasoning to end"),
        ("--no-think", "--reasoning-effort", "there is no reasoning to be more or less of"),
        ("--prefill", "--think", "an answer that has begun is not reasoned about any more"),
        ("--prefill", "--think-budget", "an answer that has begun is not reasoned about any more"),
    ):
        if one in given and other in given:
            raise UsageError(f"{one} and {other} were given: {why}", hint="leave out one of them")
    if given.get("--reasoning-effort", "").lower() == "none":
        for other in ("--think", "--think-budget"):
            if other in given:
                raise UsageError(f"--reasoning-effort none and {other} were given", hint="leave out one of them")
    if "--tool-choice" in given and "--tools" not in given:
        raise UsageError("--tool-choice says which of --tools to call, and there are none", hint="add --tools FILE")


def _template(path: Path) -> str:
    text = read_text("--template", path)
    if not text.strip():
        raise UsageError(f"--template: {path} is empty")
    if len(text) > MAX_TEMPLATE:
        raise UsageError(f"--template: {path} has more than {MAX_TEMPLATE} characters")
    return text


def _variables(arguments: Sequence[str]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for argument in arguments:
        check_text("--template-arg", argument)
        name, equals, value = argument.partition("=")
        if not (equals and name.isidentifier()):
            raise UsageError(
                f"--template-arg: {argument!r} is not KEY=VALUE", hint="such as --template-arg 'date=\"1 May\"'"
            )
        if name in _TAKEN:
            raise UsageError(f"--template-arg: {name} is what {_TAKEN[name]} says")
        if name in RESERVED_VARIABLES:
            raise UsageError(f"--template-arg: {name} cannot be set: it is not a variable of the request")
        if name in variables:
            raise UsageError(f"--template-arg: {name} was given twice")
        variables[name] = _value(value)
    return variables


def _value(text: str) -> Any:
    """JSON's value, else the text. NaN and the infinities, which Python reads, are no JSON."""
    import json

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _tools(path: Path, choice: str | None) -> ToolOptions:
    from rbee.cli.tools_file import check_parameters, read_tools
    from rbee.inventory.schema import nearest

    functions = read_tools(path)
    names = [tool["function"]["name"] for tool in functions]
    if choice in (None, "auto", "required", "none"):
        tools = ToolOptions(functions, choice or "auto")
    elif choice in names:
        tools = ToolOptions(functions, "required", only=(choice,))
    else:
        raise UsageError(
            f"--tool-choice: {choice!r} is neither a function of {path} nor auto, required or none",
            hint=nearest(choice, [*names, "auto", "required", "none"]),
        )
    if tools.choice != "none":
        check_parameters(tools, path)
    return tools
