"""Bytecode for nodes, made here: a node whose Python is of this keeper's minor version compiles nothing of it again.

Rules
- A node never compares bytecode with its source. So it is compiled from the very bytes that a digest or a lock names,
  without what this Python leaves out for itself (`-O`), and never taken from a `__pycache__`, which can be of others.
- It is there for speed alone: without it, or where the magic number in it is another Python's, sources are compiled.
- That of packages is kept beside their wheels, in a file whose name has its SHA-256; a damaged one is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import marshal
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rbee.base.files import LocalFile
from rbee.setup.base.platforms import Version

#: The projects of what hives and workers import before the first token (`node_scripts.IMPORTS`), as wheels name them.
FIRST = frozenset(
    {
        *("anyio", "click", "exceptiongroup", "h11", "idna", "jinja2", "markupsafe", "psutil", "starlette"),
        *("typing_extensions", "uvicorn"),
    }
)
#: The earliest time that a zip file can say.
_EPOCH = (1980, 1, 1, 0, 0, 0)
#: PEP 552: bytecode that is named by its source's hash, which whoever imports it does not compute again.
_UNCHECKED_HASH = 0b01


def compiled(name: str, source: bytes) -> bytes:
    """What a .pyc file holds. name: of the source, as errors show it where nobody knows better."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little")
    return head + importlib.util.source_hash(source) + marshal.dumps(code)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """The same bytes for the same files, as long as zlib is the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def of_packages(wheels: Sequence[LocalFile], python: Version) -> list[LocalFile]:
    """What is unpacked beside the wheels of FIRST: one file, or none where it is of no use or cannot be kept.

    wheels: as a lock names them, in one folder that nobody else can write to. python: the node's. Half a second, once.
    """
    first = [wheel for wheel in wheels if wheel.name.partition("-")[0].lower() in FIRST]
    if not first or python[:2] != sys.version_info[:2]:
        return []
    folder, prefix = first[0].path.parent, f"bytecode-{importlib.util.MAGIC_NUMBER[:2].hex()}-"
    for found in folder.glob(f"{prefix}*.zip"):
        if (file := LocalFile.of(found)).name == f"{prefix}{file.sha256}.zip":
            return [file]
        found.unlink(missing_ok=True)
    data = zipped({name: content for wheel in first for name, content in _of_wheel(wheel.path)})
    path = folder / f"{prefix}{hashlib.sha256(data).hexdigest()}.zip"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.touch(0o600)
        part.write_bytes(data)
        part.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return []
    return [LocalFile.of(path)]


def _of_wheel(path: Path) -> Iterator[tuple[str, bytes]]:
    """By the name that Python looks for, from site-packages on."""
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if name.endswith(".py") and "/tests/" not in name:
                with contextlib.suppress(SyntaxError):  # for another Python, or a template
                    folder, _, file = name.rpartition("/")
                    there = f"{folder}/__pycache__/{file[:-3]}.{sys.implementation.cache_tag}.pyc".lstrip("/")
                    yield there, compiled(name, wheel.read(name))
