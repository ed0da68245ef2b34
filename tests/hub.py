"""A Hugging Face hub on loopback, with the manners and the bad days of the real one.

Speaks what `huggingface_hub` and rbee's downloads use of it: the model API with commit, sizes and checksums; `resolve`
addresses that redirect to a content host of another origin; ranges, ETags and If-Range there. `Trouble` says what goes
wrong, and for how many requests. A third server speaks plain HTTP whatever the others do, and has all that they have.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.tls import server_context

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 64 * 1024


@dataclass
class Trouble:
    """What goes wrong with content. times: how many responses it still hits, None for all.

    cut_after: bytes of a response until the connection is cut. stall_after: bytes until nothing more comes for as long
    as the hub runs. corrupt: one byte is another. status: answered instead of content. ignore_range: all is sent.
    """

    cut_after: int | None = None
    stall_after: int | None = None
    corrupt: bool = False
    status: int | None = None
    ignore_range: bool = False
    times: int | None = None


@dataclass(frozen=True)
class Seen:
    """A request that came in: at the hub itself, its content host or the plain one, and with which headers."""

    host: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """token: what private content needs; empty for none. gated: everybody may ask what there is, and files are refused
    with the hub's code for that. sizes: by name, what the hub says of files that have another. commits: by repository,
    its newest, where that is not COMMIT. redirects: of paths, to an address, at the server `redirects_of`.
    trusted: with TLS, the file of what its clients trust.
    """

    url: str = ""
    content_url: str = ""
    plain_url: str = ""
    trusted: Path | None = None
    redirects: dict[str, str] = field(default_factory=dict)
    redirects_of: str = "hub"
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    token: str = ""
    gated: bool = False
    trouble: Trouble = field(default_factory=Trouble)
    seen: list[Seen] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, repo: str, name: str, content: bytes) -> str:
        """Put a file into a repository; its SHA-256."""
        self.files.setdefault(repo, {})[name] = content
        return hashlib.sha256(content).hexdigest()

    def add_plain(self, name: str, content: bytes) -> str:
        """Put a file at an address outside of any repository; the address."""
        self.plain[name] = content
        return f"{self.url}/plain/{name}"

    @property
    def env(self) -> dict[str, str]:
        """What has a process take this hub for the hub."""
        trust = {"SSL_CERT_FILE": str(self.trusted)} if self.trusted else {}
        return {"HF_ENDPOINT": self.url, **trust}

    def tokens(self) -> dict[str, set[str | None]]:
        """By host, what requests had in their Authorization header."""
        found: dict[str, set[str | None]] = {}
        for seen in self.seen:
            found.setdefault(seen.host, set()).add(seen.headers.get("authorization"))
        return found

    def content_requests(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path.startswith(("/content/", "/plain/"))]

    def take_trouble(self) -> Trouble:
        """The trouble of one response."""
        with self.lock:
            if self.trouble.times == 0:
                return Trouble()
            if self.trouble.times is not None:
                self.trouble.times -= 1
            return self.trouble


@contextmanager
def running_hub(*, tls: bool = False, identity: tuple[ssl.SSLContext, Path] | None = None) -> Iterator[Hub]:
    """A hub, its content host and a plain one, each on a port of its own, until the context is left.

    identity: of `server_context`, for hubs that one hive is to know one after the other; it trusts what it began with.
    """
    hub = Hub()
    servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(3)]
    threads = []
    with tempfile.TemporaryDirectory(prefix="rbee-hub-") as folder:
        if tls:
            context, hub.trusted = identity or server_context(Path(folder))
            for server in servers[:2]:
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        for server, host in zip(servers, ("hub", "content", "plain"), strict=True):
            server.hub, server.host = hub, host
            threads.append(threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}))
            threads[-1].start()
        scheme = "https" if tls else "http"
        hub.url, hub.content_url = (f"{scheme}://127.0.0.1:{server.server_address[1]}" for server in servers[:2])
        hub.plain_url = f"http://127.0.0.1:{servers[2].server_address[1]}"
        try:
            yield hub
        finally:
            hub.closing.set()
            for server in servers:
                server.shutdown()
                server.server_close()
            for thread in threads:
                thread.join()


class _Server(ThreadingHTTPServer):
    hub: Hub
    host: str
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent where a client went away, in a handshake for one."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: what came in is in `Hub.seen`."""

    def _answer(self) -> None:
        hub, path = self.server.hub, urlsplit(self.path).path  # to a proxy, whole addresses are sent
        headers = {name.lower(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.seen.append(Seen(self.server.host, self.command, path, headers))
        if self.server.host == hub.redirects_of and path in hub.redirects:
            self._send(302, b"", {"Location": hub.redirects[path]})
        elif path.startswith("/content/"):
            _, _, repo_owner, repo_name, name = path.split("/", 4)
            self._content(hub.files[f"{repo_owner}/{repo_name}"][name])
        elif path.startswith("/plain/"):
            content = hub.plain.get(path.removeprefix("/plain/"))
            self._error(404, "EntryNotFound") if content is None else self._content(content)
        elif not (self._authorized(headers) or (hub.gated and path.startswith("/api/"))):
            self._error(403 if hub.gated else 401, "GatedRepo" if hub.gated else "RepoNotFound")
        elif path == "/api/models":
            self._search(dict(parse_qsl(urlsplit(self.path).query)))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._model(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._redirect(*match.groups())
        else:
            self._error(404, "")

    def _authorized(self, headers: dict[str, str]) -> bool:
        token = self.server.hub.token
        return not token or headers.get("authorization") == f"Bearer {token}"

    def _commit(self, repo: str) -> str:
        return self.server.hub.commits.get(repo, COMMIT)

    def _search(self, query: dict[str, str]) -> None:
        """As the real one: every word is in the name, of those with GGUF files, what is downloaded most first."""
        words = query.get("search", "").lower().split()
        found = [
            {"id": repo, "modelId": repo, "downloads": 1000 - 10 * at, "tags": ["gguf", "license:apache-2.0"]}
            for at, (repo, files) in enumerate(self.server.hub.files.items())
            if all(word in repo.lower() for word in words) and any(name.endswith(".gguf") for name in files)
        ]
        body = json.dumps(found[: int(query.get("limit", "1000"))]).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _model(self, repo: str, revision: str | None) -> None:
        files = self.server.hub.files.get(repo)
        if files is None:
            self._error(404, "RepoNotFound")
        elif revision not in (None, "main", self._commit(repo)):
            self._error(404, "RevisionNotFound")
        else:
            sizes = self.server.hub.sizes
            siblings = [_sibling(name, content, sizes.get(name)) for name, content in files.items()]
            body = {"id": repo, "modelId": repo, "sha": self._commit(repo), "tags": [], "siblings": siblings}
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _redirect(self, repo: str, revision: str, name: str) -> None:
        content = self.server.hub.files.get(repo, {}).get(name)
        if content is None or revision not in ("main", self._commit(repo)):
            self._error(404, "EntryNotFound")
            return
        headers = {
            "Location": f"{self.server.hub.content_url}/content/{repo}/{name}",
            "X-Repo-Commit": self._commit(repo),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
        }
        self._send(302, b"", headers)

    def _content(self, content: bytes) -> None:
        trouble = self.server.hub.take_trouble()
        if trouble.status is not None:
            self._error(trouble.status, "")
            return
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        start = 0 if trouble.ignore_range else _range_start(self.headers, etag)
        if (first := re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))) and not trouble.ignore_range:
            content = content[: int(first[1]) + 1]
        if start > len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self._body(content, start, trouble)

    def _body(self, content: bytes, start: int, trouble: Trouble) -> None:
        if trouble.corrupt:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        stops = [stop for stop in (trouble.cut_after, trouble.stall_after) if stop is not None]
        end = min([len(content), *(start + stop for stop in stops)])
        try:
            for offset in range(start, end, _CHUNK):
                self.wfile.write(content[offset : min(end, offset + _CHUNK)])
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has given up, which some tests are about
        if trouble.stall_after is not None:
            self.server.hub.closing.wait()

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": f"refused: {code or status}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _sibling(name: str, content: bytes, size: int | None) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    said = len(content) if size is None else size
    lfs = {"sha256": sha256, "size": said, "pointerSize": 134}
    return {"rfilename": name, "size": said, "blobId": sha256[:40], "lfs": lfs}


def _range_start(headers: Any, etag: str) -> int:
    """RFC 9110: a range counts only while If-Range names the version that is here."""
    condition = headers.get("If-Range")
    match = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
    return int(match[1]) if match and condition in (None, etag) else 0
