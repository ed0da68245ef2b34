#!/usr/bin/env python3
"""Make `.venv` and install this checkout into it. Needs nothing but Python 3.11: no pip, no venv package, no make.

    python3 tools/setup_venv.py          what `rbee` needs
    python3 tools/setup_venv.py --dev    what the tests need, too

Does nothing when it was done before and `pyproject.toml` is unchanged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed.json"
OLDEST = (3, 11)
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")


def main() -> None:
    if sys.version_info < OLDEST:
        _run_with_newer_python()
    dev = "--dev" in sys.argv[1:]
    wanted = {"project": hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest(), "dev": dev}
    if _satisfied(wanted):
        return
    start = time.monotonic()
    if not PYTHON.exists():
        _say(f"making {VENV.relative_to(ROOT)}")
        _make_venv()
    _say("installing rbee and what it needs (about a minute)")
    _pip("install", "--upgrade", "pip>=25.1")  # the first that knows dependency groups
    groups = ["--group", "dev", "--group", "node"] if dev else []
    _pip("install", "--editable", str(ROOT), *groups)
    STAMP.write_text(json.dumps(wanted))
    _say(f"ready after {time.monotonic() - start:.0f} s: .venv/bin/rbee")


def _run_with_newer_python() -> None:
    """Replaces this process; ends it with a message where there is no newer Python."""
    for minor in range(20, OLDEST[1] - 1, -1):
        if path := shutil.which(f"python3.{minor}"):
            os.execv(path, [path, *sys.argv])  # noqa: S606 (no shell is wanted)
    sys.exit(f"rbee needs Python 3.{OLDEST[1]} or newer; this is {sys.version.split()[0]}")


def _satisfied(wanted: dict[str, object]) -> bool:
    """Whether the venv holds at least what is wanted: one for development serves users as well."""
    try:
        installed = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return PYTHON.exists() and installed["project"] == wanted["project"] and installed["dev"] >= wanted["dev"]


def _make_venv() -> None:
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None  # Debian ships it apart, in python3-venv
    venv.create(VENV, with_pip=has_ensurepip, symlinks=True, clear=True)
    if not has_ensurepip:
        _say("this Python has no ensurepip: fetching pip itself")
        with tempfile.TemporaryDirectory() as folder:
            wheel = _fetch_pip(Path(folder))
            subprocess.run([PYTHON, wheel / "pip", "--quiet", "install", "pip"], check=True)


def _fetch_pip(folder: Path) -> Path:
    """The newest pip wheel of the index, checked by its SHA-256."""
    try:
        files = json.loads(_get(f"{INDEX}/pip/", accept="application/vnd.pypi.simple.v1+json"))["files"]
        wheels = [file for file in files if re.fullmatch(r"pip-[\d.]+-py3-none-any\.whl", file["filename"])]
        newest = max((file for file in wheels if not file.get("yanked")), key=lambda file: _version(file["filename"]))
        content = _get(urllib.parse.urljoin(f"{INDEX}/pip/", newest["url"]), accept="*/*")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"cannot fetch pip from {INDEX}: {error}\nInstall it yourself: apt install python3-venv")
    if hashlib.sha256(content).hexdigest() != newest["hashes"]["sha256"]:
        sys.exit(f"{newest['filename']} from {INDEX} is not what the index says it is")
    target = folder / newest["filename"]
    target.write_bytes(content)
    return target


def _get(url: str, *, accept: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 (the user's own index)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        content: bytes = answer.read()
    return content


def _version(filename: str) -> tuple[int, ...]:
    return tuple(int(part) for part in filename.split("-")[1].split("."))


def _pip(*args: str) -> None:
    command = [PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", *args]
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip {args[0]} failed with {error.returncode}; its own message stands above")


def _say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")


if __name__ == "__main__":
    main()
