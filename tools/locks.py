"""The locks, made again as their READMEs say. What is in one stays where it still fits: one in step does not change."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from rbee.setup.base import requirements

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "requirements", ROOT / "remote" / "requirements")
ASK_S = 200.0


class Unanswered(Exception):
    """uv could not say what belongs into a lock; the text is its own."""


def commands() -> list[list[str]]:
    """What the READMEs say makes the locks: words for uv, which end with the lock's name."""
    texts = [(folder / "README.md").read_text().replace("\\\n", " ") for folder in FOLDERS]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("    uv ")]
    return [shlex.split(line)[1:] for line in lines]


def differences(words: list[str], folder: Path, cache: Path | None = None) -> list[str]:
    """Lines of a lock that `words` makes otherwise, by name and version; asks the package index. Raises Unanswered.

    Files that were added to a version since then are no difference, lost ones are. folder: for what is made.
    """
    lock = ROOT / words[-1]
    made = folder / lock.name
    shutil.copy(lock, made)
    env = {**os.environ, **({"UV_CACHE_DIR": str(cache)} if cache else {})}
    asked = subprocess.run(
        [Path(sys.executable).with_name("uv"), *words[:-1], made],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=ASK_S, check=False,
    )  # fmt: skip
    if asked.returncode:
        raise Unanswered(asked.stderr)
    before, after = (
        {(line.name, line.version, line.marker): set(line.hashes) for line in requirements.parse(path.read_text())}
        for path in (lock, made)
    )
    lost = {line for line, hashes in before.items() if not hashes <= after.get(line, hashes)}
    return sorted(f"{name} {version}" for name, version, _ in (before.keys() ^ after.keys()) | lost)
