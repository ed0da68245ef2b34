"""The Python that rbee as one file runs with, for nodes that have none: it can be moved, so it travels.

Rules
- Only to where it runs: the same processor, and a glibc that is no older than the one it needs.
- The archive is made of what was unpacked, and is the same bytes each time; its hash is what the node checks.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from rbee.base import installation, tarball, trusted_files
from rbee.base.files import LocalFile
from rbee.base.settings import Settings
from rbee.setup.base.platforms import Target, Version

_WHAT = "the keeper's cache"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """folder: where it lies here; its programs are in `bin`. version: (3, 11). platform: what it was built on."""

    folder: Path
    version: Version
    platform: Target
    digest: str

    @classmethod
    def own(cls) -> Interpreter | None:
        """This keeper's, None where that is bound to its place."""
        image = installation.unpacked()
        if image is None:
            return None
        about = json.loads((image / installation.ABOUT).read_text(encoding="utf-8"))
        version = _numbers(about["python"])[:2]
        platform = Target("Linux", about["machine"], "glibc", _numbers(about["python_glibc"]), version)
        listed = (image / installation.HASHES).read_text(encoding="utf-8").splitlines()
        own = [line for line in listed if line.split("  ", 1)[1].startswith(f"{installation.PYTHON_FOLDER}/")]
        digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:16]
        return cls(image / installation.PYTHON_FOLDER, version, platform, digest)

    @property
    def name(self) -> str:
        """Of its folder on a node: equal names, equal contents."""
        return f"rbee-{'.'.join(map(str, self.version))}-{self.digest}"

    def archive(self, settings: Settings) -> LocalFile:
        """All of it in one file, made at the first call. Some seconds."""
        path = settings.cache / "interpreters" / f"{self.name}.tar.gz"
        trusted_files.check(path, _WHAT)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                with part.open("xb") as file:
                    tarball.pack(self.folder, file, level=6)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        return LocalFile.of(path)


def for_node(target: Target) -> Interpreter | None:
    """The Python that can be brought to a node of this platform, None where there is none."""
    found = Interpreter.own()
    return found if found and target.runs_what_is_built_on(found.platform) else None


def _numbers(version: str) -> Version:
    return tuple(int(number) for number in version.split("."))
