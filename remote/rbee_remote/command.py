"""How a process of rbee starts another command of the payload it runs from itself."""

from __future__ import annotations

import sys
from pathlib import Path

_FROM_FOLDER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from rbee_remote.__main__ import main; main()"


def payload_command(*arguments: str) -> list[str]:
    """The argv that runs `arguments` from the payload (a zip), or from the source folder where there is no zip.

    -I: neither the user's site-packages nor PYTHON* variables nor the current folder change what is imported.
    """
    root = Path(__file__).parent.parent
    if root.is_file():
        return [sys.executable, "-I", str(root), *arguments]
    return [sys.executable, "-I", "-c", _FROM_FOLDER, str(root), *arguments]
