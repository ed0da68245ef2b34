"""`remote/rbee_remote` as one zip file that a node's Python runs: `python -I PAYLOAD.zip COMMAND`.

Rules
- The digest names the sources (paths and contents), not the zip's bytes, which differ between zlib versions, nor the
  bytecode that travels with them, which differs between Pythons: two keepers of one rbee do not replace each other's
  hives.
- Bytecode is there for speed alone: a zip is never written to, so that without it each process on a node compiles all
  that it imports. A node whose Python is of another minor version than the keeper's reads the sources beside it.
- A node never compares bytecode with its source. So it is compiled from the very bytes that the digest names, without
  what this Python leaves out for itself (`-O`), and never taken from a `__pycache__`, which can be of other sources.
- The package is found, never imported: most of it needs what only a node's runtime has.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import marshal
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "rbee_remote"
DIGEST_LENGTH = 16

_START = "__main__.py"
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
    return _payload(sources, dict(_bytecode(sources)))


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


def _bytecode(sources: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """By its name in the zip, where zipimport looks for it: beside the source."""
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little")
    for name, source in sources.items():
        if name.endswith(".py") and name != _START:
            code = compile(source, name, "exec", dont_inherit=True, optimize=0)
            yield f"{name}c", head + importlib.util.source_hash(source) + marshal.dumps(code)


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
