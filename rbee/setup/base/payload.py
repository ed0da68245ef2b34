"""`remote/rbee_remote` as one zip file that a node's Python runs: `python -I PAYLOAD.zip COMMAND`.

Rules
- The digest names what is inside (paths and contents), not the zip's bytes, which differ between zlib versions.
- The package is found, never imported: most of it needs what only a node's runtime has.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "rbee_remote"
DIGEST_LENGTH = 16

_MAIN = b"from rbee_remote.__main__ import main\n\nraise SystemExit(main())\n"
#: The earliest time that a zip file can say.
_EPOCH = (1980, 1, 1, 0, 0, 0)


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
    """The payload of this rbee. Milliseconds, and the same object each time."""
    return pack(package_folder())


def package_folder() -> Path:
    """Where the code for nodes lies, in a checkout or in an installed wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def pack(package: Path) -> Payload:
    """Zip a package folder, with a `__main__.py` beside it at the root of the zip."""
    files = {"__main__.py": _MAIN} | {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and _belongs(path.relative_to(package))
    }
    data = _zip(files)
    return Payload(_digest(files), data, hashlib.sha256(data).hexdigest())


def _belongs(path: Path) -> bool:
    """Not what Python or an editor left behind."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and not path.name.endswith((".pyc", "~"))


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
