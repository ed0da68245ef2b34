"""How a process of rbee starts another command of the payload it runs from itself, and how such a process is known
again in a list of processes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_FROM_FOLDER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from rbee_remote.__main__ import main; main()"

_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?(\.exe)?", re.IGNORECASE)
_ZIP = re.compile(r"([0-9a-f]{16})\.zip")
#: Options that a command takes for the process list alone: what it is, who started it, and where it belongs.
_TAGS = ("id", "owner", "home", "run-dir")
_OPTION = re.compile(r"--(id|owner|home|run-dir)(?:=(.*))?", re.DOTALL)


def payload_command(*arguments: str) -> list[str]:
    """The argv that runs `arguments` from the payload (a zip), or from the source folder where there is no zip.

    -I: neither the user's site-packages nor PYTHON* variables nor the current folder change what is imported.
    """
    root = Path(__file__).parents[2]
    if root.is_file():
        return [sys.executable, "-I", str(root), *arguments]
    return [sys.executable, "-I", "-c", _FROM_FOLDER, str(root), *arguments]


def accept_tags(parser: argparse.ArgumentParser) -> None:
    """Have a command accept what its owner writes into its command line. It does not act on it; a clean-up does."""
    for name in _TAGS:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)


@dataclass(frozen=True, slots=True)
class PayloadCommand:
    """A command line as `payload_command` makes it. root: the payload's path. digest: of a payload on a node, else "".

    home and run_dir: as its options say; home else as the place of the payload says; "" where neither does.
    instance and owner: its options --id and --owner.
    """

    root: str
    digest: str
    command: str
    instance: str = ""
    owner: str = ""
    home: str = ""
    run_dir: str = ""


def read_command(argv: Sequence[str]) -> PayloadCommand | None:
    """What `payload_command` made, from the words of a process; None for anything else that only mentions us."""
    if len(argv) < 4 or not _PYTHON.fullmatch(PurePosixPath(argv[0]).name) or argv[1] != "-I":
        return None
    if argv[2] == "-c":
        if len(argv) < 6 or argv[3] != _FROM_FOLDER:
            return None
        root, command, rest, digest, home = argv[4], argv[5], argv[6:], "", ""
    else:
        root, command, rest = argv[2], argv[3], argv[4:]
        path = PurePosixPath(root)
        named = _ZIP.fullmatch(path.name)
        if not named or path.parent.name != "payloads" or not path.is_absolute():
            return None
        digest, home = named[1], str(path.parent.parent)
    given = _options(rest)
    return PayloadCommand(
        root,
        digest,
        command,
        instance=given.get("id", ""),
        owner=given.get("owner", ""),
        home=given.get("home", home),
        run_dir=given.get("run-dir", ""),
    )


def _options(words: Sequence[str]) -> dict[str, str]:
    """`--home=X` and `--home X` alike; of several, argparse too takes the last."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        match = _OPTION.fullmatch(word)
        if match and match[2] is not None:
            found[match[1]] = match[2]
        elif match and index + 1 < len(words):
            found[match[1]] = words[index + 1]
    return found
