"""Packages of a few bytes, so that the real pip and the real uv can be driven without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_wheel(
    folder: Path, name: str, files: Mapping[str, bytes], *, version: str = "1.0", tag: str = "py3-none-any"
) -> Path:
    """A wheel with `files` (paths in site-packages and contents)."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    rows = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in content.items()]
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in content.items():
            archive.writestr(inside, data)
    return path


#: A build backend inside the source itself: it needs no other package. What it prints looks like ninja.
_BACKEND = """
import os, sys, time, pathlib
{on_import}
sys.path.insert(0, str(pathlib.Path(__file__).parent))

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{name}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nGenerator: tiny\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return info.name

def build_wheel(folder, config_settings=None, metadata_directory=None):
    for step in (1, 2, 3):
        print(f"[{{step}}/3] cc -c part{{step}}.c", flush=True)
{body}
    import tiny_packages
    content = {{"{name}/__init__.py": ("FLAGS = " + repr(os.environ["CMAKE_ARGS"])).encode()}}
    return tiny_packages.write_wheel(pathlib.Path(folder), "{name}", content, version="{version}", tag="{tag}").name
"""


def write_source(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    tag: str = "py3-none-any",
    body: str = "",
    on_import: str = "",
    requires: str = "",
) -> Path:
    """A source archive whose build takes three steps, then runs `body` (statements), and packs CMAKE_ARGS.

    on_import: a statement that runs as soon as anything asks the archive for more than its bytes. requires: a package
    that it wants to be built with.
    """
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    wanted = [requires] if requires else []
    files = {
        "pyproject.toml": f'[build-system]\nrequires = {wanted}\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "backend.py": _BACKEND.format(name=name, version=version, tag=tag, body=indented, on_import=on_import),
        "tiny_packages.py": Path(__file__).read_text(encoding="utf-8"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{inside}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def lock_line(file: Path) -> str:
    """The line of a lock for a wheel or a source archive."""
    name, version = file.name.removesuffix(".tar.gz").split("-")[:2]
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
