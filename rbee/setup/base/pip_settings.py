"""What counts of the user's settings for pip (PIP_*, pip.conf): where an index is, and how it is reached.

Others can make pip fetch more than it was asked for, or by other rules than ours: `requirement` adds to what is
installed, `constraint` and `no-binary` choose, `no-build-isolation` has builds take what lies about. The standard
library only: tools/setup_venv.py uses this before anything is installed.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence

#: Options of pip, without their dashes.
REACH = frozenset(
    {"index-url", "pypi-url", "extra-index-url", "find-links", "no-index", "proxy", "cert", "client-cert"}
    | {"trusted-host", "timeout", "default-timeout", "retries", "keyring-provider", "cache-dir", "no-cache-dir"}
)


def words(python: str) -> list[str]:
    """The command that lists all settings of pip's files, with `question`; `listed` has its answer."""
    return [python, "-I", "-m", "pip", "--disable-pip-version-check", "config", "list"]


def question(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to ask with: of pip's own none but the one that names a file.

    PIP_QUIET would have it say nothing, PIP_ISOLATED half, PIP_PYTHON have it end at once.
    """
    none = {name: "" for name in environment if name.startswith("PIP_") and name != "PIP_CONFIG_FILE"}
    return {**none, "PIP_QUIET": "0"}


def listed(status: int, said: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """All settings: of the files as that command said them, where it could, and of these variables."""
    files = [line for line in said if not line.startswith(":env:.")] if status == 0 else []
    return [*files, *listed_in(environment)]


def listed_in(environment: Mapping[str, str]) -> list[str]:
    """What that command would say of these variables alone."""
    pip = {name[4:]: value for name, value in environment.items() if name.startswith("PIP_") and value}
    return [f":env:.{name.lower().replace('_', '-')}={value!r}" for name, value in pip.items()]


def variables(listed: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """PIP_* for a pip that is to know the ways to an index, and nothing else of what the user has set.

    listed: lines as `pip config list` has them. An empty variable is none to pip.
    """
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, "download": {}, ":env:": {}}
    for line in listed:
        section, _, option = line.partition("=")[0].partition(".")
        if section in found and option in REACH:
            found[section][option] = str(ast.literal_eval(line.partition("=")[2]))
    merged = {option: value for section in found.values() for option, value in section.items()}
    return {
        **{name: "" for name in environment if name.startswith("PIP_")},
        **{f"PIP_{option.replace('-', '_').upper()}": value for option, value in merged.items()},
        "PIP_CONFIG_FILE": os.devnull,  # then pip reads no file at all
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
