"""pip, as a child process, and what it fetches for us.

Rules
- Of the user's settings only those count that say where an index is and how it is reached (pip_settings.py).
- Downloads go into a folder of their own first and get their final name when whole: a folder that exists is complete.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Progress
from rbee.setup.base import child, pip_settings, requirements_file
from rbee.setup.base.requirements import Locked
from rbee_remote.protocol import ErrorCode

_RAW_PROGRESS = re.compile(r"^\s*Progress (\d+) of (\d+)$")


@asynccontextmanager
async def staging(parent: Path) -> AsyncIterator[Path]:
    """A fresh folder inside `parent`, removed at the end with all that is still in it."""
    folder = parent / f".staging-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command(*arguments: str | Path) -> list[str | Path]:
    """The words that run pip. -I: what lies in the current folder or in PYTHONPATH is not for it."""
    return [sys.executable, "-I", "-m", "pip", *arguments]


async def environment(folder: Path) -> dict[str, str]:
    """The variables that pip runs with. It works below `folder`, so that a killed one leaves nothing elsewhere."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    said: list[str] = []
    status = await child.run(pip_settings.words(sys.executable), said.append, env=pip_settings.question())
    listed = pip_settings.listed(status, said)
    return {**pip_settings.variables(listed), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}


async def fetch_locked(line: Locked, target: Path, *, on_line: child.OnLine) -> Path:
    """The one file that a line of a lock stands for, in `target`; nothing of it is run. Raises NodeError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    async with staging(target.parent) as folder:
        script = [sys.executable, "-I", requirements_file.__file__]
        words = [*script, line.name, line.version, str(folder / "files"), *line.hashes]
        status, said = await _run(words, on_line, await environment(folder))
        if status != 0:
            raise NodeError(
                ErrorCode.BOOTSTRAP_FAILED,
                last_error(said),
                hint=requirements_file.hint("\n".join(said)),
            )
        publish(folder / "files", target)
    return next(target.iterdir())  # noqa: ASYNC240 (one small folder)


async def find_locked(line: Locked, folder: Path) -> list[requirements_file.Link]:
    """Where the indexes have the files that a line of a lock names, as `links_to`. folder: for what it works with."""
    async with staging(folder) as work:
        script = [sys.executable, "-I", requirements_file.__file__]
        words = [*script, line.name, line.version, "", *line.hashes]
        _, said = await _run(words, lambda _: None, await environment(work))
    found = [json.loads(text.removeprefix("Link ")) for text in said if text.startswith("Link [")]
    return [requirements_file.Link(url, sha256) for sha256, url in found]


async def download(
    requirements: Sequence[str],
    target: Path,
    *,
    options: Sequence[str] = (),
    only_index: str = "",
    on_line: child.OnLine,
    code: ErrorCode = ErrorCode.BOOTSTRAP_FAILED,
) -> None:
    """`pip download` the requirements, without their dependencies, into `target`, which must not exist yet.

    options: the caller's, `--only-binary=:all:` among them, or pip runs what it fetches. A lock's lines (with --hash)
    are checked. only_index: an index that is asked in place of the user's. Raises NodeError `code` with what pip said
    last.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    async with staging(target.parent) as folder:
        listed = folder / "requirements.txt"
        listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        files = folder / "files"
        words = command("download", "--no-deps", "--progress-bar", "raw", "--dest", files, "--requirement", listed)
        env = await environment(folder)
        if only_index:
            env |= {"PIP_INDEX_URL": only_index, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_NO_INDEX": ""}
        status, said = await _run([*words, *options], on_line, env)
        if status != 0:
            raise NodeError(
                code,
                f"pip could not download {_first_words(requirements)}: {last_error(said)}",
                hint=requirements_file.hint("\n".join(said)),
                details={"network": looks_like_no_network(said)},
            )
        publish(files, target)


async def _run(words: Sequence[str | Path], on_line: child.OnLine, env: dict[str, str]) -> tuple[int, list[str]]:
    """The exit status, and all that was said."""
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        on_line(line)

    return await child.run(words, hear, env=env), said


def publish(folder: Path, target: Path) -> None:
    """Give a finished folder its final name; when another process was first, its folder stays."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def report_bytes(emit: Emit, key: str, text: str) -> child.OnLine:
    """Turns pip's raw progress into events: for a download of one file."""

    def hear(line: str) -> None:
        if found := _RAW_PROGRESS.match(line):
            emit(Progress(key, text, float(found[1]), float(found[2])))

    return hear


def report_files(emit: Emit, key: str, text: str, total: int) -> child.OnLine:
    """Counts the files that pip begins with: for a download of many small ones."""
    begun = 0

    def hear(line: str) -> None:
        nonlocal begun
        if line.startswith(("Collecting ", "Processing ")):  # from an index, from a folder
            begun += 1
            emit(Progress(key, text, float(min(begun, total)), float(total), "steps"))

    return hear


def last_error(lines: Sequence[str]) -> str:
    """What pip said last that is an error, in one line."""
    errors = [line.strip() for line in lines if line.lstrip().startswith("ERROR:")]
    said = errors or [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("ERROR: ")[:300] if said else "no output"


def looks_like_no_network(lines: Sequence[str]) -> bool:
    """Whether pip's complaints are about reaching an index, not about what it found there."""
    return any("connection broken by" in line or "Could not fetch URL" in line for line in lines)


def _first_words(requirements: Sequence[str]) -> str:
    name = requirements[0].split(" --hash", 1)[0]
    return name if len(requirements) == 1 else f"{name} and {len(requirements) - 1} more"
