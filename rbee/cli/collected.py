"""Options that belong together, collected into one value before a command sees them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def takes(**collectors: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take the options that are a collector's parameters; the command's parameter of the collector's name
    gets what it returns. In the help they stand where that parameter does.

        @takes(sampling=read_sampling)
        def infer(shell: Shell, *, model: ModelOption = None, sampling: dict[str, Any]) -> None: ...
    """
    options = {name: _parameters(collect) for name, collect in collectors.items()}

    def dress(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def call(*arguments: Any, **values: Any) -> None:
            for name, collect in collectors.items():
                values[name] = collect(**{option.name: values.pop(option.name) for option in options[name]})
            function(*arguments, **values)

        signature = inspect.signature(function, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            parameters += options.get(name, [parameter])
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return dress


def _parameters(collect: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(collect, eval_str=True).parameters.values()
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
