#!/usr/bin/env python3
"""Make `.venv` and install this checkout into it. Needs nothing but Python 3.11: no pip, no venv package, no make.

    python3 tools/setup_venv.py          what `rbee` needs
    python3 tools/setup_venv.py --dev    what the tests need, too

Everything is what the lock names (requirements/keeper.txt, dev.txt), by its SHA-256, and comes as a wheel, so nothing
of it runs while it is installed. What remote/requirements/constraints.txt names is left out where there is no wheel.
Of pip's settings only those count that say where an index is.

pip checks the hash of what it installs, not of what it finds installed. So another lock, or a `.venv` of which nobody
knows what it was made from, has it made anew; where `pyproject.toml` alone has changed, rbee alone is installed again.
Does nothing when it was done before and neither has changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed.json"
OLDEST = (3, 11)
#: What rbee uses where it is there: without it, nodes say what is wrong with a grammar.
OPTIONAL = ROOT / "remote" / "requirements" / "constraints.txt"


def main() -> None:
    if sys.version_info < OLDEST:
        _run_with_newer_python()
    dev = "--dev" in sys.argv[1:]
    lock = _lock_in_use("dev.txt") or ({} if dev else _lock_in_use("keeper.txt"))
    project = {"project": _sha256(ROOT / "pyproject.toml")}
    if lock and _stamp() == {**lock, **project}:
        return
    start = time.monotonic()
    settings = _pip_settings()
    if not lock:
        lock = _install_lock("dev.txt" if dev else "keeper.txt", settings)
    # hatchling, which does this, is in the lock
    _pip(settings, "install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(json.dumps({**lock, **project}))
    _say(f"ready after {time.monotonic() - start:.0f} s: .venv/bin/rbee")


def _run_with_newer_python() -> None:
    """Replaces this process; ends it with a message where there is no newer Python."""
    for minor in range(20, OLDEST[1] - 1, -1):
        if path := shutil.which(f"python3.{minor}"):
            os.execv(path, [path, *sys.argv])  # noqa: S606 (no shell is wanted)
    sys.exit(f"rbee needs Python 3.{OLDEST[1]} or newer; this is {sys.version.split()[0]}")


def _lock_in_use(name: str) -> dict[str, str]:
    """A lock and its SHA-256 if the venv was made from it, {} if not. One for development serves users as well."""
    wanted = _locks(name)
    stamp = _stamp()
    return wanted if PYTHON.exists() and stamp == {**wanted, "project": stamp.get("project")} else {}


def _stamp() -> dict[str, object]:
    """What the venv was made from; {} where that is not known."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _install_lock(name: str, settings: dict[str, str]) -> dict[str, str]:
    """Make a venv that holds what a lock names and nothing else. Returns that lock and its SHA-256."""
    lock = ROOT / "requirements" / name
    made_from = _locks(name)
    STAMP.unlink(missing_ok=True)  # first: whatever ends this early leaves a venv that is made anew
    _say(f"making {VENV.relative_to(ROOT)}")
    _make_venv(settings)
    _say("installing rbee and what it needs (about half a minute)")
    # what is imported is compiled then; most of it never is
    words = ["install", "--require-hashes", "--only-binary=:all:", "--no-deps", "--no-compile", "--requirement"]
    _pip(settings, *words, str(lock))
    if OPTIONAL.exists():
        _pip(settings, *words, str(OPTIONAL), quietly=True)
    return made_from


def _locks(name: str) -> dict[str, str]:
    """The locks that a venv is made from, with their SHA-256."""
    locks = [ROOT / "requirements" / name, OPTIONAL]
    return {lock.name: _sha256(lock) for lock in locks if lock.exists()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _pip_settings() -> dict[str, str]:
    """The variables for pip: what its files say, where this Python has a pip to ask, and the environment."""
    from rbee.setup.base import pip_settings  # noqa: PLC0415 (an older Python, which ends before this, could not)

    words, env = pip_settings.words(sys.executable), {**os.environ, **pip_settings.question()}
    asked = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    return pip_settings.variables(pip_settings.listed(asked.returncode, asked.stdout.splitlines()))


def _make_venv(settings: dict[str, str]) -> None:
    """With the locked pip: ensurepip takes longer to bring another one, and Debian ships it apart."""
    with tempfile.TemporaryDirectory() as folder:
        wheel, trouble = _fetch_pip(Path(folder), settings)
        has_ensurepip = importlib.util.find_spec("ensurepip") is not None
        if not wheel and not has_ensurepip:
            sys.exit(f"{trouble}\nOr install pip yourself: apt install python3-venv")
        venv.create(VENV, with_pip=not wheel, symlinks=True, clear=True)
        if wheel:
            program = [str(PYTHON), str(wheel / "pip")]
            _pip(settings, "install", "--no-index", "--no-deps", "--no-compile", str(wheel), program=program)


def _fetch_pip(folder: Path, settings: dict[str, str]) -> tuple[Path | None, str]:
    """The locked pip, or why there is none: pip itself may know more ways to an index."""
    from rbee.setup.base import requirements, requirements_file  # noqa: PLC0415 (likewise)

    locked = requirements.parse((ROOT / "requirements" / "keeper.txt").read_text())
    pip = next((line for line in locked if line.name == "pip"), None)
    if not pip:
        return None, "requirements/keeper.txt names no pip"
    try:
        return requirements_file.fetch(pip.name, pip.version, pip.hashes, folder, settings=settings), ""
    except requirements_file.NotFoundError as error:
        return None, f"{error}\n{requirements_file.hint(str(error))}"


def _pip(settings: dict[str, str], *args: str, program: Sequence[str] = (), quietly: bool = False) -> None:
    """program: of pip, the one of the venv by default. quietly: it may fail."""
    words = [*(program or (str(PYTHON), "-I", "-m", "pip")), "--quiet", *args]
    done = subprocess.run(words, check=False, cwd=ROOT, env={**os.environ, **settings}, capture_output=quietly)
    if done.returncode and not quietly:
        sys.exit(f"pip {args[0]} failed with {done.returncode}; its own message stands above")


def _say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "remote")]
    main()
