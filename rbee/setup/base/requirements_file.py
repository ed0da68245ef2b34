"""Fetches one file of a lock from the package index, by its SHA-256, without running anything of it.

    python -I requirements_file.py NAME VERSION FOLDER sha256:HEX...     or, to be told where it is, with "" for FOLDER

pip cannot do that: it asks a source archive for its metadata, which runs what is in the archive and whatever its build
needs. tools/setup_venv.py uses this file before there is a pip, so it needs the standard library and nothing else.

Rules
- The hash decides: which index, page or mirror a file comes from does not matter; one with another hash is passed over.
- pip's own variables (PIP_INDEX_URL and its kin) say where to look. A password goes to the host it was given for.
- Who vouches for an index is what pip would take: PIP_CERT, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, else this machine's
  own authorities, and where it has none, as with python.org's Python for macOS, those that come with pip.
- A file gets its name when it is whole and its hash is right.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html.parser
import http.client
import importlib
import json
import netrc
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_INDEX = "https://pypi.org/simple"
#: Bytes of a page that lists files (the longest on PyPI have some ten), and of a file.
LARGEST_PAGE = 64 * 2**20
LARGEST_FILE = 2**30
TIMEOUT_S = 60.0
_CHUNK = 2**20
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

#: What reaching for a page or a file can raise.
TROUBLE = (OSError, ValueError, http.client.HTTPException)

OnBytes = Callable[[int, int], None]


class NotFoundError(Exception):
    """No index has a file with one of the hashes."""


def hint(said: str) -> str:
    """What may help, by what was said when a file could not be had."""
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "if your network has its own certificate authority, set PIP_CERT to the file of its certificate (PEM)"
    return "check the network and pip's settings on this machine (`python -m pip config list`)"


@dataclass(frozen=True, slots=True)
class Link:
    """A file on a page. sha256: "" where the page does not say it."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])


def fetch(
    name: str,
    version: str,
    hashes: Sequence[str],
    folder: Path,
    *,
    settings: Mapping[str, str] = os.environ,
    on_bytes: OnBytes = lambda _done, _total: None,
) -> Path:
    """The file of a project's version that has one of `hashes` ("sha256:…"), in `folder`, under the name it has there.

    settings: pip's variables. on_bytes: hears how much there is, and of how much (0: unknown). Raises NotFoundError.
    """
    wanted = {value.removeprefix("sha256:") for value in hashes}
    reader = Reader(settings)
    troubles: list[str] = []
    for place in _places(name, settings):
        try:
            links = [link for link in reader.links(place) if _may_be(link, name, version, wanted)]
        except TROUBLE as error:
            troubles.append(f"{shown(place)}: {error}")
            continue
        for link in links:
            try:
                return reader.keep(link, wanted, folder, on_bytes)
            except TROUBLE as error:
                troubles.append(f"{shown(link.url)}: {error}")
    said = "; ".join(troubles) or "no index has it"
    raise NotFoundError(f"{name} {version} with the locked SHA-256 was not found: {said}")


def links_to(name: str, hashes: Sequence[str], settings: Mapping[str, str] = os.environ) -> list[Link]:
    """Where files with one of `hashes` are, as far as pages say so; none that takes a password."""
    wanted = {value.removeprefix("sha256:") for value in hashes}
    reader = Reader(settings)
    found: list[Link] = []
    for place in _places(name, settings):
        with contextlib.suppress(*TROUBLE):
            found += [link for link in reader.links(place) if link.sha256 in wanted]
    return [link for link in found if not reader.has_password(link.url)]


def _places(name: str, settings: Mapping[str, str]) -> Iterator[str]:
    """The addresses of all pages, the user's folders first: they cost nothing."""
    for place in settings.get("PIP_FIND_LINKS", "").split():
        yield place if re.match(r"[a-z]+:", place) else Path(place).expanduser().absolute().as_uri()
    if settings.get("PIP_NO_INDEX", "").lower() in {"1", "true", "yes", "y", "t", "on"}:
        return
    project = re.sub(r"[-_.]+", "-", name).lower()
    indexes = [settings.get("PIP_INDEX_URL") or settings.get("PIP_PYPI_URL") or DEFAULT_INDEX]
    for index in [*indexes, *settings.get("PIP_EXTRA_INDEX_URL", "").split()]:
        yield f"{index.rstrip('/')}/{project}/"


def _may_be(link: Link, name: str, version: str, wanted: set[str]) -> bool:
    """A page that says no hashes has its files looked at by their names."""
    if link.sha256:
        return link.sha256 in wanted
    pattern = rf"{re.sub(r'[-_.]+', '[-_.]+', name)}-{re.escape(version)}(-.+\.whl|\.tar\.gz|\.zip)"
    return re.fullmatch(pattern, link.name, re.IGNORECASE) is not None


class Reader:
    """Opens addresses as pip's settings say. handlers: urllib's, that are asked besides the usual ones."""

    def __init__(self, settings: Mapping[str, str], handlers: Sequence[urllib.request.BaseHandler] = ()) -> None:
        self.handlers = handlers
        self._settings = settings
        self._timeout = float(settings.get("PIP_TIMEOUT") or settings.get("PIP_DEFAULT_TIMEOUT") or TIMEOUT_S)
        self._passwords: dict[str, str] = {}
        self._netrc: dict[str, str] = {}
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            for host, (user, _, password) in netrc.netrc().hosts.items():
                self._netrc[host] = f"{user}:{password}"

    def read(self, place: str, most: int) -> tuple[bytes, str, str]:
        """A page, where it was at last, and its type. Raises OSError, and ValueError for more than `most` bytes."""
        with self._open(place, _ACCEPT) as answer:
            page = answer.read(most + 1)
            if len(page) > most:
                raise ValueError("the page is too large")
            return page, answer.geturl(), answer.headers.get_content_type()

    def links(self, place: str, most: int | None = None) -> list[Link]:
        """What an index's page, a folder or a file holds. Raises OSError and ValueError."""
        parts = urllib.parse.urlsplit(place)
        path = Path(urllib.request.url2pathname(parts.path))
        if parts.scheme == "file" and path.is_dir():
            if not (path / "index.html").is_file():
                return [Link(file.as_uri(), "") for file in sorted(path.iterdir())]
            place = (path / "index.html").as_uri()
        page, base, kind = self.read(place, LARGEST_PAGE if most is None else most)
        found = _from_json(page) if kind == _JSON else _from_html(page)
        links = [Link(urllib.parse.urljoin(base, link.url), link.sha256) for link in found]
        remote = urllib.parse.urlsplit(base).scheme != "file"
        return [link for link in links if not (remote and urllib.parse.urlsplit(link.url).scheme == "file")]

    def keep(
        self, link: Link, wanted: set[str] | None, folder: Path, on_bytes: OnBytes, most: int | None = None
    ) -> Path:
        """wanted: hashes, None for any. Raises OSError, and ValueError for another hash or too many bytes."""
        if not re.fullmatch(r"\w[\w.+!-]*", link.name):
            raise ValueError("that is not a file name")
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{link.name}.part"
        most = LARGEST_FILE if most is None else most
        digest = hashlib.sha256()
        try:
            with self._open(link.url, "*/*") as answer, part.open("xb") as file:
                total = int(answer.headers.get("Content-Length") or 0)
                while piece := answer.read(_CHUNK):
                    digest.update(piece)
                    file.write(piece)
                    on_bytes(file.tell(), total)
                    if file.tell() > most:
                        raise ValueError(f"it is larger than {most // 2**20} MiB")
            if wanted is not None and digest.hexdigest() not in wanted:
                raise ValueError(f"its SHA-256 is {digest.hexdigest()}, which is not the locked one")
            return part.rename(folder / link.name)
        finally:
            part.unlink(missing_ok=True)

    def has_password(self, url: str) -> bool:
        """Whether one was given for its host."""
        parts = urllib.parse.urlsplit(url)
        hosts = {urllib.parse.urlsplit(origin).hostname for origin in self._passwords} | self._netrc.keys()
        return "@" in parts.netloc or parts.hostname in hosts

    def _open(self, url: str, accept: str) -> Any:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https", "file"}:
            raise ValueError(f"addresses with {parts.scheme}: are not supported")
        host = parts.netloc.rpartition("@")[2]
        origin = f"{parts.scheme}://{host}"
        if "@" in parts.netloc:  # as with pip, what else lies on that host is asked for with it
            self._passwords[origin] = urllib.parse.unquote(parts.netloc.rpartition("@")[0])
        url = urllib.parse.urlunsplit(parts._replace(netloc=host, fragment=""))
        request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 (the scheme is one of three)
        if password := self._passwords.get(origin) or self._netrc.get(parts.hostname or ""):
            # "unredirected": another host that this one leads to does not get it
            request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
        return self._opener(host).open(request, timeout=self._timeout)

    def _opener(self, host: str) -> urllib.request.OpenerDirector:
        context = _trusting(self._settings.get("PIP_CERT", ""))
        if certificate := self._settings.get("PIP_CLIENT_CERT"):
            context.load_cert_chain(certificate)
        if {host, host.partition(":")[0]} & set(self._settings.get("PIP_TRUSTED_HOST", "").split()):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context), *self.handlers]
        if proxy := self._settings.get("PIP_PROXY"):
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
        return urllib.request.build_opener(*handlers)


def _trusting(given: str) -> ssl.SSLContext:
    """given: a file of certificates or a folder of them, "" for what else says one. Raises OSError."""
    given = given or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or ""
    if given and not Path(given).exists():
        raise FileNotFoundError(f"the certificate file {given} does not exist")
    if given:
        folder = Path(given).is_dir()
        return ssl.create_default_context(cafile=None if folder else given, capath=given if folder else None)
    context = ssl.create_default_context()
    if not _has_authorities(context):
        for name in ("pip._vendor.certifi", "certifi"):
            with contextlib.suppress(ImportError, OSError):
                context.load_verify_locations(importlib.import_module(name).where())
                break
    return context


def _has_authorities(context: ssl.SSLContext) -> bool:
    """A folder of them is read when the first is looked for, so it does not count as loaded."""
    folder = ssl.get_default_verify_paths().capath
    return bool(context.get_ca_certs()) or (folder is not None and any(Path(folder).iterdir()))


def _from_json(page: bytes) -> list[Link]:
    """PEP 691. Raises ValueError."""
    try:
        return [Link(str(file["url"]), str(file["hashes"].get("sha256", ""))) for file in json.loads(page)["files"]]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the page is not valid ({error!r})") from error


def _from_html(page: bytes) -> list[Link]:
    """PEP 503."""
    links: list[Link] = []

    class Anchors(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "a" and (address := dict(attrs).get("href")):
                found = re.search(r"#.*?sha256=([0-9a-f]{64})", address)
                links.append(Link(address.partition("#")[0], found[1] if found else ""))

    Anchors().feed(page.decode(errors="replace"))
    return links


def shown(url: str) -> str:
    """Without the password and the query in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def main(arguments: Sequence[str]) -> int:
    """Says how far it is in the words of pip's raw progress, and what went wrong in those of pip's errors."""
    name, version, folder, *hashes = arguments
    if not folder:
        for link in links_to(name, hashes):
            sys.stdout.write(f"Link {json.dumps([link.sha256, link.url])}\n")
        return 0

    def say(done: int, total: int) -> None:
        sys.stdout.write(f"Progress {done} of {total}\n")
        sys.stdout.flush()

    try:
        fetch(name, version, hashes, Path(folder), on_bytes=say)
    except NotFoundError as error:
        sys.stdout.write(f"ERROR: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
