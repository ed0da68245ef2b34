"""How this rbee came here: as a package, from a checkout, or as one file that has unpacked itself (`make dist`).

Rules
- Whoever starts rbee, or a Python with what rbee has, asks here with which words: in the one file they are others.
"""

from __future__ import annotations

import sys
from pathlib import Path

#: Of what is unpacked: what describes it, the hash of each file as `sha256sum --check` reads it, and the folder of a
#: Python that can be moved. tools/one_file/build.py makes them.
ABOUT = "about.json"
HASHES = "files.sha256"
PYTHON_FOLDER = "python"


def one_file() -> Path | None:
    """The file that was started, absolute; None in every other form, and for what a command leaves running."""
    given = sys._xoptions.get("rbee_file")
    return Path(given) if isinstance(given, str) else None


def unpacked() -> Path | None:
    """The folder that the one file was unpacked to; None in every other form."""
    image = Path(sys.prefix)
    return image if (image / ABOUT).is_file() else None


def command() -> list[str]:
    """The words that run rbee from wherever they are typed."""
    if file := one_file():
        return [str(file)]
    program = Path(sys.executable).with_name("rbee")
    return [str(program)] if program.exists() else [*python(), "-m", "rbee"]


def python() -> list[str]:
    """The words that run a Python which imports what this one does, wherever it is started."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P"]
