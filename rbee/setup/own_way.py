"""CUDA's libraries by the node's own way to the internet, where it has one: 400 MB that this machine need not upload.

Rules
- The keeper asks its index where the files are; the node gets addresses, names and SHA-256, and fetches.
- No address that could be a secret, or that is of use with one alone, leaves this machine.
- What fails costs a node without a way out 3 s, and one notice; then the files are uploaded as others are.
"""

from __future__ import annotations

import asyncio
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.base.errors import NodeError
from rbee.base.events import Notice, Progress
from rbee.base.retries import (
    LIBRARIES_ANSWER_S,
    LIBRARIES_FIND_S,
    LIBRARIES_PAUSE_S,
    LIBRARIES_STALL_S,
    LIBRARIES_TRIES,
    LIBRARIES_WHOLE_S,
)
from rbee.node.session import NodeSession
from rbee.setup.base import node_scripts, pip
from rbee.setup.base.platforms import Target
from rbee.setup.base.requirements import Locked
from rbee.setup.base.requirements_file import Link

LIMITS: Mapping[str, float] = {
    "answer_s": LIBRARIES_ANSWER_S,
    "stall_s": LIBRARIES_STALL_S,
    "whole_s": LIBRARIES_WHOLE_S,
    "tries": LIBRARIES_TRIES,
    "pause_s": LIBRARIES_PAUSE_S,
}
#: 128 and the number of SIGALRM.
_NO_ANSWER = "ended 142"
_LONGEST_REASON = 200
_PROGRESS = re.compile(r"progress ([0-9]{1,2}) ([0-9]{1,15}) ([0-9]{1,15})")
_FILE = re.compile(r"nvidia_[\w.+-]+\.whl", re.ASCII)
#: The names of folders by which indexes sort files, and parts of addresses that may be a token (Cloudsmith's have 16
#: characters, Gemfury's 20).
_DIGEST = re.compile(r"[0-9a-f]{60}|[0-9a-f]{64}")
_TOKEN = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[\w~-]{12,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class There:
    """A wheel of the index."""

    name: str
    sha256: str
    url: str


async def fetch(
    session: NodeSession,
    place: node_scripts.Place,
    lines: Sequence[Locked],
    target: Target,
    folder: Path,
    present: frozenset[str],
) -> Sequence[There]:
    """The files of the lines, once the node has them; none where that is not so, with a notice if it was tried.

    target: whose wheels. folder: here, for what finding them works with. present: SHA-256 of what the node has anyway.
    Raises ConnectError.
    """
    wheels = await find(lines, target, folder)
    missing = [wheel for wheel in wheels if wheel.sha256 not in present]
    if not missing:
        return wheels
    said = await _run(
        session, node_scripts.fetch_files(place, LIMITS, [(wheel, wheel.url) for wheel in missing]), missing
    )
    if said == "fetched":
        return wheels
    reason = said.removeprefix("failed ")
    if said == _NO_ANSWER:
        reason = f"no answer from {urllib.parse.urlsplit(missing[0].url).hostname} within {LIBRARIES_ANSWER_S:g} s"
    name = session.node.name
    session.emit(
        Notice(f"{name} cannot fetch CUDA's libraries itself, so they are uploaded ({reason[:_LONGEST_REASON]})")
    )
    return []


async def find(lines: Sequence[Locked], target: Target, folder: Path) -> Sequence[There]:
    """Where the index has them, for all of the lines or none."""
    try:
        async with asyncio.timeout(LIBRARIES_FIND_S):
            pages = await asyncio.gather(*(pip.find_locked(line, folder) for line in lines))
    except (TimeoutError, NodeError, OSError, ValueError):
        return []
    found = [choose(links, line, target) for links, line in zip(pages, lines, strict=True)]
    chosen = [wheel for wheel in found if wheel]
    return chosen if len(chosen) == len(lines) else []


def choose(links: Sequence[Link], line: Locked, target: Target) -> There | None:
    """The wheel for a platform, where its address may be told to a node. Pure."""
    platforms = set(target.wheel_platforms())
    for link in links:
        tags = link.name.removesuffix(".whl").rpartition("-")[2].split(".")
        fits = f"sha256:{link.sha256}" in line.hashes and not platforms.isdisjoint(tags)
        if fits and _FILE.fullmatch(link.name) and is_open(link.url, line.name):
            return There(link.name, link.sha256, link.url)
    return None


def is_open(url: str, project: str) -> bool:
    """Whether nothing in an address can be a secret, and it is of https. project: whose name may stand in it. Pure."""
    if not re.fullmatch(r"https://[\w.-]+(:[0-9]{1,5})?(/[\w.~!+%-]*)+", url, re.ASCII):
        return False
    folders = [part for part in url.split("/")[3:-1] if not _DIGEST.fullmatch(part)]
    return not any(_TOKEN.fullmatch(part) and part.lower() != project for part in folders)


async def _run(session: NodeSession, script: str, files: Sequence[There]) -> str:
    """The last line, with what was said before it as progress."""
    last = ""
    async with session.connection.stream_script(script) as lines:
        async for line in lines:
            said = line.decode(errors="replace")
            if found := _PROGRESS.fullmatch(said):
                number, done, total = map(int, found.groups())
                if number < len(files):
                    text = f"{session.node.name} fetches {files[number].name.partition('-')[0]}"
                    session.emit(Progress(f"fetch-{number}", text, float(done), float(total)))
            elif last != "fetched" and not last.startswith("failed "):
                last = said
    return last
