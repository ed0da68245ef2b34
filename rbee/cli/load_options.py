"""The options that say how a model is loaded, checked as the inventory's keys of the same names are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.load_options import OPTIONS, Adapter, Adapters, Form, Names, Number, Option, Shares


def collect_load_options(
    names: Iterable[str] = tuple(OPTIONS), told: Mapping[str, str] = MappingProxyType({})
) -> Callable[..., LoadOptions]:
    """For `takes`: what was said by these options. told: help for those that mean something else here where nobody says
    them."""

    def collect(**given: Any) -> LoadOptions:
        return load_options(given)

    parameters = [_parameter(name, OPTIONS[name], told.get(name, OPTIONS[name].help)) for name in names]
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return collect


def load_options(given: Mapping[str, Any]) -> LoadOptions:
    """What the command line says, by the options' names. Raises UsageError that names the option."""
    said = {name: value for name, value in given.items() if value is not None and value != []}
    return LoadOptions(**{name: _checked(name, OPTIONS[name], value) for name, value in said.items()})


def _flag(name: str, option: Option) -> str:
    return option.flag or f"--{name.replace('_', '-')}"


def _parameter(name: str, option: Option, told: str) -> inspect.Parameter:
    kind: Any = list[str] if isinstance(option.form, Names | Adapters) else str
    shown = typer.Option(_flag(name, option), metavar=option.metavar, help=told)
    annotation = Annotated[kind | None, shown]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _checked(name: str, option: Option, text: Any) -> Any:
    from rbee.inventory.schema import KEYS

    try:
        return KEYS[name][1](_value(option.form, text))
    except ValueError as error:
        raise UsageError(f"{_flag(name, option)}: {error}") from error


def _value(form: Form, text: Any) -> Any:
    """What the inventory would have there; words that are no numbers are left to its checks."""
    match form:
        case Number():
            return _number(int, text)
        case Shares():
            return [_number(float, part) for part in text.split(",")]
        case Adapters():
            return [_adapter(each) for each in text]
    return text


def _adapter(text: str) -> str:
    """A file by its whole path, as the inventory has it."""
    adapter = Adapter.of(text)
    return text if adapter.is_ref else adapter._replace(name=str(Path(adapter.name).expanduser().absolute())).text


def _number(kind: type[int] | type[float], text: str) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        return text
