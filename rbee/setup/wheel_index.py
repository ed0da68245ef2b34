"""An index of prebuilt llama-cpp-python wheels: `$RBEE_WHEEL_INDEX`, with one part for each backend, `INDEX/BACKEND/`.

    RBEE_WHEEL_INDEX=https://wheels.example/llama#sha256=HEX,sha256=HEX     exactly these wheels, on every machine
    RBEE_WHEEL_INDEX=https://wheels.example/llama                           whatever it offers, where a node names it

Without hashes the index chooses what runs. Its wheels are then kept under its name, like what a node built: they go to
nodes whose `builds_from` has that name, and never to this machine.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from rbee.base.errors import ConfigError
from rbee.setup.builders import Builders

ENV_INDEX = "RBEE_WHEEL_INDEX"


@dataclass(frozen=True, slots=True)
class WheelIndex:
    """url: as it was given, without the hashes, which are "sha256:…"."""

    url: str
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> WheelIndex | None:
        """The index that was set. Raises ConfigError for hashes that are none."""
        url, _, fragment = environment.get(ENV_INDEX, "").partition("#")
        if not url:
            return None
        hashes = [part for part in fragment.split(",") if part]
        if wrong := [part for part in hashes if not re.fullmatch(r"sha256=[0-9a-f]{64}", part)]:
            raise ConfigError(f"{ENV_INDEX}: {wrong[0]!r} is not a hash", hint="write #sha256=HEX, several with commas")
        return cls(url.rstrip("/"), tuple(part.replace("=", ":", 1) for part in hashes))

    @property
    def name(self) -> str:
        """What `builds_from` calls it: the address without a password. "" where hashes say what it may give."""
        parts = urllib.parse.urlsplit(self.url)
        return "" if self.hashes else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def may_serve(self, builders: Builders) -> bool:
        return builders.include(self.name)

    def page(self, backend: str) -> str:
        return f"{self.url}/{backend}/"

    def passed_over(self) -> str:
        """What to tell where its wheels could be wanted and must not be used."""
        return f"{self.name} is not used for llama.cpp: {ENV_INDEX} has no #sha256=, and builds_from does not name it"
