"""Whether somebody else can replace a folder on a node, asked in sh, for what runs before Python: `strict_modes.sh`.

The payload has the same rule in Python (`system/strict_modes.py`); a test compares the two.
"""

from __future__ import annotations

import functools
from importlib.resources import files

from rbee.transport.connection import quote


@functools.cache
def unsafe_because_script() -> str:
    """Defines `unsafe_because PATH`: prints how somebody else could replace what is there; nothing where nobody can."""
    return files("rbee.transport").joinpath("strict_modes.sh").read_text(encoding="utf-8")


def is_safe(folder: str) -> str:
    """A script that ends with 0 where nobody else can replace the folder, or put anything into it."""
    return f'{unsafe_because_script()}[ -O {quote(folder)} ] && [ -z "$(unsafe_because {quote(folder)})" ]'
