"""Environments of clients that would not go into the tests' own: each from a lock, made once for all checkouts."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import filelock

from tests.testbed import assets, run

ROOT = Path(__file__).parents[2]
#: `requirements/NAME.txt`. Instructor wants an OpenAI client that is older than everybody else's.
NAMES = ("clients", "instructor")


def python(name: str) -> Path:
    """The interpreter of an environment: from the cache, made once. A run of the tests makes what is not there in a
    folder of its own. Raises CalledProcessError where the package index does not give what the lock names."""
    lock = ROOT / "requirements" / f"{name}.txt"
    made_of = hashlib.sha256(f"{lock.read_text()}{sys.version}{sys.base_prefix}".encode()).hexdigest()[:12]
    folder = f"peers-{name}-{made_of}"
    cached = assets.cache_folder() / folder
    target = cached if cached.exists() else (run.folder() or assets.cache_folder()) / folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            _make(target, lock)
    return target / "bin" / "python"


def prepare() -> None:
    """Have all of them in the cache, and none of earlier locks."""
    kept = {python(name).parents[1] for name in NAMES}
    for old in assets.cache_folder().glob("peers-*"):
        if old.is_dir() and old not in kept:
            shutil.rmtree(old)
            Path(f"{old}.lock").unlink(missing_ok=True)


def _make(target: Path, lock: Path) -> None:
    """It has its name once it is whole: programs in `bin` are not used, so that it may be moved."""
    part = target.with_suffix(".part")
    venv.create(part, clear=True, symlinks=True)
    options = ["--quiet", "--require-hashes", "--only-binary=:all:", "--no-deps", "--requirement", str(lock)]
    words = [sys.executable, "-m", "pip", "--python", str(part / "bin" / "python"), "install", *options]
    subprocess.run(words, check=True)
    part.rename(target)


if __name__ == "__main__":
    prepare()
