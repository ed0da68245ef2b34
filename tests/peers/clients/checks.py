"""What the clients' programs share. Each runs in an environment that has its client, so nothing here imports rbee.

A program registers its checks with `check`, and `main` runs all of them against a gateway: it prints a JSON object, in
which each check has the traceback of what went wrong, or nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

#: The gateway without a path, what to ask for there, a key without limits, and one with a request a minute.
ADDRESS, MODEL, KEY, HASTY_KEY = sys.argv[1:5] if len(sys.argv) == 5 else ("", "", "", "")
BASE = f"{ADDRESS}/v1"
NO_MODEL = "no-such-model"

HELLO = [{"role": "user", "content": "Say hello to the bees."}]
#: More than any context that this model has.
ENDLESS = [{"role": "user", "content": "bee " * 40_000}]
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
WEATHER_TOOL: dict[str, Any] = {"type": "function", "function": WEATHER}

_checks: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    _checks.append(function)
    return function


@contextlib.contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """The block ends with an error of this very class, whose text has these words."""
    try:
        yield
    except kind as error:
        assert type(error) is kind, f"{type(error).__name__} is a {kind.__name__}, but not that itself"
        assert all(word in str(error) for word in words), f"{words} are not all in {error}"
        return
    raise AssertionError(f"nothing was raised, {kind.__name__} was expected")


def until_refused(ask: Callable[[], object]) -> None:
    """Ask as often as one request a minute does not allow."""
    for _ in range(3):
        ask()


def main() -> None:
    report: dict[str, str] = {}
    for function in _checks:
        start = time.monotonic()
        told = io.StringIO()
        try:
            with contextlib.redirect_stdout(told):
                function()
            report[function.__name__] = ""
        except BaseException:
            report[function.__name__] = f"{traceback.format_exc()}{told.getvalue()}"
        sys.stderr.write(f"{function.__name__}: {time.monotonic() - start:.1f} s\n")
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()
    os._exit(0)  # some clients leave threads behind that hold the process for seconds
