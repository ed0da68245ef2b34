"""What is asked of a batch, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rbee.batch.defaults import Defaults
from rbee.batch.reading import Input
from rbee.inventory.aliases import ModelAlias


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """nodes: as of `Inventory.select`. aliases: of the gateway's own; the one that `defaults.model` names among them.

    restart: what the output has is thrown away. retry_failed: lines that failed before are asked again. retries: more
    tries of a line. most_tokens: of prompts and answers, after which no line is begun; None for no limit. give_up_s:
    without any answer, after which the run ends.
    """

    input: Input
    out: Path
    nodes: str | None = None
    defaults: Defaults = field(default_factory=Defaults)
    aliases: Mapping[str, ModelAlias] = field(default_factory=dict)
    in_order: bool = True
    restart: bool = False
    retry_failed: bool = False
    retries: int = 3
    most_tokens: int | None = None
    give_up_s: float = math.inf

    @property
    def digest(self) -> str:
        """Of all that decides the answers but the input itself: SHA-256 in hex."""
        alias = self.aliases.get(self.defaults.model)
        said = {
            "defaults": asdict(self.defaults),
            "model": alias.model if alias else "",
            "template": self.input.template.text if self.input.template else None,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Summary:
    """total: lines of the input. done, failed, tokens: of this run and those before. answered, again, seconds, by_node:
    of this run: lines, tries after the first ones, time, lines by node. stopped: why lines are left, "" for none."""

    total: int
    done: int
    failed: int
    tokens: int
    answered: int
    again: int
    seconds: float
    by_node: Mapping[str, int]
    stopped: str = ""
