"""What an index of prebuilt wheels consists of, as text. Pure.

    SHA256SUMS                                 a line for each wheel, as `sha256sum` writes it
    SHA256SUMS.sig                             its signature, by `ssh-keygen -Y sign -n rbee-wheels`, where there is one
    BACKEND/llama-cpp-python/index.html        links to the wheels of a backend (PEP 503)
    BACKEND/llama-cpp-python/….whl

SHA256SUMS decides: the pages are made from it. A wheel's name there says what it needs, as pip and uv read it: one that
was built with glibc 2.34 is called manylinux_2_34, which is more than its builder knew. What it has for NVIDIA's GPUs
is its build tag, so that builds for several kinds of GPUs have room beside each other, and a node finds its own.
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections.abc import Mapping

from rbee.base.errors import NodeError
from rbee.setup.base.cuda import Code
from rbee.setup.base.platforms import Version
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.load_options import COMPILED_BACKENDS

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
PROJECT = "llama-cpp-python"
#: Bytes of SHA256SUMS; a line has 150.
LONGEST = 2**20

_LINE = re.compile(
    rf"([0-9a-f]{{64}}) [ *]((?:{'|'.join(COMPILED_BACKENDS)})/{PROJECT}/llama_cpp_python-[\w.+-]+\.whl)", re.ASCII
)


def read(sums: str, where: str) -> dict[str, str]:
    """SHA-256 by path. where: the index, for errors. Raises NodeError for what is no index of wheels."""
    entries = {}
    for line in sums.splitlines():
        found = _LINE.fullmatch(line)
        if not found:
            raise NodeError(
                ErrorCode.INVALID_RESPONSE,
                f"{where} has a {SUMS} that no index of wheels has",
                hint="name a folder that is empty, or an index that `rbee wheels push` has made",
                details={"line": line[:200]},
            )
        entries[found[2]] = found[1]
    return entries


def write(entries: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(entries.items()))


def page(entries: Mapping[str, str], backend: str) -> str:
    """The page of a backend's wheels."""
    folder = f"{backend}/{PROJECT}/"
    links = [
        f'<a href="{urllib.parse.quote(path.removeprefix(folder))}#sha256={digest}">'
        f"{html.escape(path.removeprefix(folder))}</a><br>"
        for path, digest in sorted(entries.items())
        if path.startswith(folder)
    ]
    head = '<meta name="pypi:repository-version" content="1.0">'
    title = f"<title>{PROJECT} for {html.escape(backend)}</title>"
    return "\n".join(["<!DOCTYPE html>", f"<html><head>{head}{title}</head><body>", *links, "</body></html>", ""])


def page_path(backend: str) -> str:
    return f"{backend}/{PROJECT}/index.html"


def wheel_path(backend: str, name: str, libc: str, libc_version: Version, code: Code | None = None) -> str:
    """Where a wheel lies in an index: under its own name, but for what that does not say of the C library and of what
    it has for CUDA."""
    needed = {"glibc": "manylinux", "musl": "musllinux"}.get(libc)
    if needed and len(libc_version) == 2:
        tag = "_".join((needed, *map(str, libc_version)))
        name = re.sub(r"-linux_(\w+)\.whl$", rf"-{tag}_\1.whl", name)
    project, version, *tags = name.split("-")
    if code and len(tags) == 3:  # no build tag so far
        name = "-".join((project, version, code.build_tag, *tags))
    return f"{backend}/{PROJECT}/{name}"
