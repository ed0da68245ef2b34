"""`remote/rbee_remote` as one zip file that a node's Python runs: `python -I PAYLOAD.zip COMMAND`.

Rules
- The digest names the sources (paths and contents), not the zip's bytes, which differ between zlib versions, nor the
  bytecode that travels with them, which differs between Pythons: two keepers of one rbee do not replace each other's
  hives.
- Bytecode is there for speed alone: a zip is never written to, so that without it each process on a node compiles all
  that it imports. A node whose Python is of another minor version than the keeper's reads the sources beside it.
- The package is found, never imported: most of it needs what only a node's runtime has.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rbee.setup.base import bytecode

PACKAGE = "rbee_remote"
DIGEST_LENGTH = 16

_START = "__main__.py"
_MAIN = b"from rbee_remote.__main__ import main\n\nraise SystemExit(main())\n"


@dataclass(frozen=True, slots=True)
class Payload:
    """digest: 16 hex digits of a SHA-256. data: the zip file. sha256: of `data`, lower-case hex."""

    digest: str
    data: bytes = field(repr=False)
    sha256: str

    @property
    def name(self) -> str:
        """Its file name on a node."""
        return f"{self.digest}.zip"


@functools.cache
def build_payload() -> Payload:
    """The payload of this rbee, sources alone. Milliseconds, and the same object each time."""
    return pack(package_folder())


@functools.cache
def build_compiled() -> Payload:
    """The same, as it is put on nodes: with bytecode of this Python. Some tenths of a second; the same object each
    time."""
    return compiled(package_folder())


def package_folder() -> Path:
    """Where the code for nodes lies, in a checkout or in an installed wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def pack(package: Path) -> Payload:
    """Zip a package folder, with a `__main__.py` beside it at the root of the zip."""
    files = _sources(package)
    return _payload(files, {})


def compiled(package: Path) -> Payload:
    """As `pack`, with bytecode beside each source."""
    sources = _sources(package)
    return _payload(sources, _bytecode(sources))


def _sources(package: Path) -> dict[str, bytes]:
    return {_START: _MAIN} | {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and _belongs(path.relative_to(package))
    }


def _belongs(path: Path) -> bool:
    """Not what Python or an editor left behind."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and not path.name.endswith((".pyc", "~"))


def _bytecode(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """By its name in the zip, where zipimport looks for it: beside the source."""
    modules = {name: source for name, source in sources.items() if name.endswith(".py") and name != _START}
    return {f"{name}c": bytecode.compiled(name, source) for name, source in modules.items()}


def _payload(sources: Mapping[str, bytes], more: Mapping[str, bytes]) -> Payload:
    data = bytecode.zipped({**sources, **more})
    return Payload(_digest(sources), data, hashlib.sha256(data).hexdigest())


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:DIGEST_LENGTH]
