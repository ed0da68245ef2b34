"""What a look at a node finds: a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """detail: what was found. fix: what to do, empty when all is well."""

    level: Level
    title: str
    detail: str
    fix: str = ""
