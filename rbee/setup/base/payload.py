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
import io
import marshal
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

PACKAGE = "rbee_remote"
DIGEST_LENGTH = 16

_MAIN = b"from rbee_remote.__main__ import main\n\nraise SystemExit(main())\n"
#: The earliest time that a zip file can say.
_EPOCH = (1980, 1, 1, 0, 0, 0)
#: PEP 552: bytecode that is named by its source's hash, which whoever imports it does not compute again.
_UNCHECKED_HASH = 0b01


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
    """The same, as it is put on nodes: with bytecode of this Python. A tenth of a second where this Python has compiled
    the sources before, else a second; the same object each time."""
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
    """As `pack`, with bytecode beside each source. Without it under `python -O`: what that leaves out, nodes need."""
    return _payload(_sources(package), {} if _optimizes() else dict(_bytecode(package)))


def _optimizes() -> bool:
    return sys.flags.optimize > 0


def _sources(package: Path) -> dict[str, bytes]:
    return {"__main__.py": _MAIN} | {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and _belongs(path.relative_to(package))
    }


def _belongs(path: Path) -> bool:
    """Not what Python or an editor left behind."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and not path.name.endswith((".pyc", "~"))


def _bytecode(package: Path) -> Iterator[tuple[str, bytes]]:
    """By its name in the zip, where zipimport looks for it: beside the source."""
    for path in package.rglob("*.py"):
        inside = path.relative_to(package)
        if _belongs(inside):
            name = f"{package.name}/{inside.as_posix()}"
            code = SourceFileLoader(name, str(path)).get_code(name)  # from __pycache__, where it is that of the source
            assert code is not None
            head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little")
            head += importlib.util.source_hash(path.read_bytes())
            yield f"{name}c", head + marshal.dumps(_named(code, name))


def _named(code: CodeType, name: str) -> CodeType:
    """As compiled from a file of that name: where this keeper's code lies is nobody's business on a node."""
    inner = tuple(_named(part, name) if isinstance(part, CodeType) else part for part in code.co_consts)
    return code.replace(co_filename=name, co_consts=inner)


def _payload(sources: Mapping[str, bytes], bytecode: Mapping[str, bytes]) -> Payload:
    data = _zip({**sources, **bytecode})
    return Payload(_digest(sources), data, hashlib.sha256(data).hexdigest())


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
