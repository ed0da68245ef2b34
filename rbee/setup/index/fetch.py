"""Fetches a llama-cpp-python wheel from an index, in a process of its own, which its starter can end at any time.

    python -m rbee.setup.index.fetch < REQUEST

Rules
- An index can be anything: pages and files have bounds, and what takes too long is for the starter to notice.
- A hash or a signature is checked before a file gets its name. What came by TLS leads to nothing that does not.
- The address, which can hold a password, comes on stdin: others can read the words of a command.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rbee.setup.base.cuda import Code, obstacle
from rbee.setup.base.platforms import Target
from rbee.setup.base.requirements_file import TROUBLE, Link, Reader

PROJECT = "llama-cpp-python"
SUMS = "SHA256SUMS"
#: What is signed is signed for this, and for nothing else (`ssh-keygen -Y sign -n`).
NAMESPACE = "rbee-wheels"
#: Bytes of a page (the official one has some 300 kB), of the list of hashes, and of its signature.
_LARGEST_PAGE = 8 * 2**20
_LARGEST_SUMS = 2**20
_LARGEST_SIGNATURE = 2**16
#: Characters of a file name, as of all file systems here.
_LONGEST_NAME = 255
#: Files of one index that are fetched to see whether one has the right hash.
_MOST_TRIED = 4
_LONGEST_REASON = 1000
_LEAVES_TLS = "the index is reached by TLS, and leads away from it"


@dataclass(frozen=True, slots=True)
class Request:
    """url, folders: of an index, each folder with its own page. platforms: wheel tags, the best first.

    sha256: one of these, or whatever the index gives where there is none and no key. most: bytes of a wheel.
    cuda, gpus: as of a `Target`.
    """

    url: str
    folders: Sequence[str]
    version: str
    platforms: Sequence[str]
    python: Sequence[int]
    sha256: Sequence[str]
    key: str
    most: int
    folder: str
    cuda: Sequence[int] = ()
    gpus: Sequence[Sequence[int]] = ()

    def text(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class RefusedError(Exception):
    """There is no wheel to be had, or none that may be used; the text says why."""


def fetch(request: Request) -> Path:
    """Raises RefusedError."""
    tls = request.url.startswith("https:")
    reader = Reader(os.environ, [_Redirects(tls=tls)])
    signed = _signed(reader, request) if request.key else None
    troubles: list[str] = []
    for folder in request.folders:
        page = f"{request.url}/{folder}/{PROJECT}/"
        try:
            links = reader.links(page, _LARGEST_PAGE)
        except urllib.error.HTTPError as error:
            troubles.append(f"{folder}: {error}")
            continue
        except TROUBLE as error:
            raise RefusedError(str(getattr(error, "reason", error))) from error
        for link in list(_fitting(links, request))[:_MOST_TRIED]:
            try:
                return _keep(reader, link, request, _wanted(link, folder, request, signed), tls=tls)
            except TROUBLE as error:
                troubles.append(f"{link.name}: {error}")
    raise RefusedError("; ".join(troubles) or f"it has no {PROJECT} {request.version} for {request.platforms[0]}")


def _fitting(links: list[Link], request: Request) -> Iterator[Link]:
    """Wheels of the version for this platform, Python and GPUs, as far as their names tell, the best first."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import Version

    version, python = Version(request.version), "".join(map(str, request.python))
    ranked = []
    for link in links:
        try:
            if len(link.name) > _LONGEST_NAME:  # each tag of one part counts with each of the others
                continue
            name, found, build, tags = parse_wheel_filename(link.name)
        except InvalidWheelFilename:
            continue
        platforms = {tag.platform for tag in tags if tag.interpreter in ("py3", f"cp{python}")}
        ranks = [rank for rank, platform in enumerate(request.platforms) if platform in platforms]
        if name == PROJECT and found == version and ranks and _is_for_gpus("".join(map(str, build)), request):
            ranked.append((min(ranks), link))
    ranked.sort(key=lambda item: item[0])
    return (link for _, link in ranked)


def _is_for_gpus(build_tag: str, request: Request) -> bool:
    code = Code.of_build_tag(build_tag)
    gpus = frozenset(map(tuple, request.gpus))
    return code is None or not obstacle(code, Target("Linux", "", "", (), (), cuda=tuple(request.cuda), gpus=gpus))


def _wanted(link: Link, folder: str, request: Request, signed: dict[str, str] | None) -> set[str] | None:
    """The hashes that a file may have, None for any. Raises ValueError where it can have none of them."""
    if signed is not None:
        place = rf"{folder}/(.*/)?{re.escape(link.name)}"
        digests = {digest for path, digest in signed.items() if re.fullmatch(place, path)}
        if not digests:
            raise ValueError(f"{SUMS}, which is signed, does not name it")
        return digests
    if request.sha256 and link.sha256 and link.sha256 not in request.sha256:
        raise ValueError(f"its SHA-256 is {link.sha256}, which is not the locked one")
    return set(request.sha256) or ({link.sha256} if link.sha256 else None)


def _keep(reader: Reader, link: Link, request: Request, wanted: set[str] | None, *, tls: bool) -> Path:
    if tls and not link.url.startswith("https:"):
        raise ValueError(_LEAVES_TLS)

    def say(done: int, total: int) -> None:
        sys.stdout.write(f"Progress {done} of {total}\n")
        sys.stdout.flush()

    return reader.keep(link, wanted, Path(request.folder), say, request.most)


def _signed(reader: Reader, request: Request) -> dict[str, str]:
    """Of each file that the key's holder has signed for, below the index's root: its hash. Raises RefusedError."""
    from asyncssh import validate_sshsig

    try:
        sums, _, _ = reader.read(f"{request.url}/{SUMS}", _LARGEST_SUMS)
        signature, _, _ = reader.read(f"{request.url}/{SUMS}.sig", _LARGEST_SIGNATURE)
    except TROUBLE as error:
        raise RefusedError(f"{SUMS} and its signature: {error}") from error
    signer = f'{NAMESPACE} namespaces="{NAMESPACE}" {request.key}'
    try:
        good = validate_sshsig(sums, signature, NAMESPACE, signer.encode())
    except Exception:  # a signature can be damaged in more ways than asyncssh has errors for
        good = False
    if not good:
        raise RefusedError(f"{SUMS} is not signed with the key that the inventory names")
    lines = sums.decode(errors="replace").splitlines()
    found = (re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line) for line in lines)
    return {match[2]: match[1] for match in found if match}


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows those to HTTP, and by TLS alone where the index is reached by that; urllib's own would go on by FTP."""

    def __init__(self, *, tls: bool) -> None:
        self._tls = tls

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if self._tls and scheme != "https":
            raise ValueError(_LEAVES_TLS)
        if scheme not in ("http", "https"):
            raise ValueError(f"the index leads to an address that begins with {scheme[:20]}:, which is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def main() -> int:
    """The last line says `fetched NAME`, or why there is none in the words of pip's errors."""
    try:
        path = fetch(Request(**json.loads(sys.stdin.buffer.read())))
    except RefusedError as error:
        sys.stdout.write(f"ERROR: {' '.join(str(error).split())[:_LONGEST_REASON]}\n")
        return 1
    sys.stdout.write(f"fetched {path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
