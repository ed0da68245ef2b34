"""One file by its hash, from pages of every kind, served by real servers on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rbee.setup.base import requirements_file
from rbee.setup.base.requirements_file import NotFoundError, fetch
from tests.tls import server_context

DATA = b"the source"
SHA256 = hashlib.sha256(DATA).hexdigest()
FILE = "llama_cpp_python-0.3.1.tar.gz"
HASHES = ("sha256:" + "0" * 64, f"sha256:{SHA256}")

#: (kind, body) of a path; a kind that begins with http is a redirect to it.
Pages = dict[str, tuple[str, bytes]]


class Server:
    """seen: path and Authorization of each request."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.seen: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.seen.append((self.path, self.headers["Authorization"]))
                kind, body = server.pages.get(self.path, ("", b""))
                self.send_response(302 if kind.startswith("http") else 200 if kind else 404)
                self.send_header("Location" if kind.startswith("http") else "Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_address[1]}"

    def wrap(self, context: ssl.SSLContext) -> None:
        """From now on https."""
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)


@contextmanager
def serving(**pages: tuple[str, bytes]) -> Iterator[Server]:
    with running(Server({f"/{path}": page for path, page in pages.items()})) as server:
        yield server


@contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def html(url: str) -> tuple[str, bytes]:
    return "text/html", f"<!DOCTYPE html><a href='{url}' data-requires-python='&gt;=3.8'>file</a>".encode()


def as_json(url: str, sha256: str = SHA256) -> tuple[str, bytes]:
    files = [{"filename": FILE, "url": url, "hashes": {"sha256": sha256} if sha256 else {}}]
    return "application/vnd.pypi.simple.v1+json", json.dumps({"meta": {"api-version": "1.1"}, "files": files}).encode()


PAGE, FOUND = "simple/llama-cpp-python/", ("application/gzip", DATA)


def get(folder: Path, **settings: str) -> Path:
    variables = {f"PIP_{name.upper()}": value for name, value in settings.items()}
    return fetch("llama_cpp.python", "0.3.1", HASHES, folder, settings=variables)


@pytest.mark.parametrize(
    "page",
    [
        as_json(f"../../files/{FILE}"),
        as_json(f"/files/{FILE}", sha256=""),
        html(f"../../files/{FILE}#sha256={SHA256}"),
        html(f"../../files/{FILE}"),
        html(f"/files/{FILE}?signed=1#sha256={SHA256}"),
    ],
)
def test_pages_in_json_and_html_with_hashes_and_without(page: tuple[str, bytes], tmp_path: Path) -> None:
    with serving(**{PAGE: page, f"files/{FILE}": FOUND, f"files/{FILE}?signed=1": FOUND}) as server:
        heard: list[tuple[int, int]] = []
        settings = {"PIP_INDEX_URL": f"http://{server.host}/simple/"}
        found = fetch(
            "llama_cpp.python", "0.3.1", HASHES, tmp_path, settings=settings, on_bytes=lambda *of: heard.append(of)
        )
    assert found == tmp_path / FILE
    assert found.read_bytes() == DATA
    assert heard == [(len(DATA), len(DATA))]
    assert list(tmp_path.iterdir()) == [found]


def test_a_file_with_another_hash_is_passed_over_for_one_of_the_next_index(tmp_path: Path) -> None:
    evil = ("application/gzip", b"evil")
    with (
        serving(**{PAGE: html(f"/files/{FILE}"), f"files/{FILE}": evil}) as first,
        serving(**{PAGE: as_json(f"/files/{FILE}"), f"files/{FILE}": FOUND}) as second,
    ):
        found = get(tmp_path, index_url=f"http://{first.host}/simple", extra_index_url=f"http://{second.host}/simple")
        assert found.read_bytes() == DATA
        assert (f"/files/{FILE}", None) in first.seen
        with pytest.raises(NotFoundError, match="not the locked one"):
            get(tmp_path / "2", index_url=f"http://{first.host}/simple")
    assert list((tmp_path / "2").iterdir()) == []


def test_folders_and_pages_of_links_and_no_index(tmp_path: Path) -> None:
    links = tmp_path / "a folder"
    links.mkdir()
    (links / FILE).write_bytes(DATA)
    assert get(tmp_path / "1", find_links=links.as_uri(), no_index="1").read_bytes() == DATA
    (links / "index.html").write_text(f"<a href='{FILE}'>")
    assert get(tmp_path / "2", find_links=links.as_uri(), no_index="true").read_bytes() == DATA
    with pytest.raises(NotFoundError):
        get(tmp_path / "3", no_index="1")


def test_a_password_goes_to_its_own_host_and_into_no_message(tmp_path: Path) -> None:
    with serving(**{FILE: FOUND}) as other:
        with serving(**{PAGE: as_json(f"/{FILE}"), FILE: (f"http://{other.host}/{FILE}", b"")}) as server:
            index = f"http://me:p%40ss@{server.host}/simple"
            assert get(tmp_path / "1", index_url=index).read_bytes() == DATA
            server.pages = {}
            with pytest.raises(NotFoundError) as caught:
                get(tmp_path / "2", index_url=index)
        assert {sent for _, sent in server.seen} == {f"Basic {base64.b64encode(b'me:p@ss').decode()}"}
        assert other.seen == [(f"/{FILE}", None)]
    assert "404" in str(caught.value)
    assert "p@ss" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)


def test_netrc_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\ndefault login x password y\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(**{PAGE: as_json(f"/{FILE}"), FILE: FOUND}) as server:
        get(tmp_path / "out", index_url=f"http://{server.host}/simple")
    assert {sent for _, sent in server.seen} == {f"Basic {base64.b64encode(b'me:secret').decode()}"}


@pytest.mark.parametrize(
    "page",
    [
        as_json("file:///etc/passwd"),
        as_json("gopher://x.example/"),
        as_json("/.."),
        ("application/vnd.pypi.simple.v1+json", b"[" * 10_000),
        ("application/vnd.pypi.simple.v1+json", b'{"files": [{"url": 1}]}'),
        ("text/html", b"<a href='\xff\x00'>" * 1000),
    ],
)
def test_pages_that_make_no_sense_are_no_reason_to_stop(page: tuple[str, bytes], tmp_path: Path) -> None:
    good = {PAGE: as_json(f"/{FILE}"), FILE: FOUND}
    with serving(**{PAGE: page}) as first, serving(**good) as second:
        found = get(tmp_path, index_url=f"http://{first.host}/simple", extra_index_url=f"http://{second.host}/simple")
    assert found.read_bytes() == DATA


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Path]]:
    """An index whose certificate no authority of this machine vouches for, and the file of it."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tls").mkdir()
    context, _ = server_context(tmp_path / "tls")
    server = Server({f"/{PAGE}": as_json(f"/{FILE}"), f"/{FILE}": FOUND})
    server.wrap(context)
    with running(server):
        yield server, tmp_path / "tls/certificate.pem"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"])
def test_a_proxy_or_mirror_with_its_own_authority_is_trusted_where_pip_would(
    https: tuple[Server, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server, certificate = https
    monkeypatch.setenv(name, str(certificate))
    settings = {"PIP_INDEX_URL": f"https://{server.host}/simple", name: os.environ[name]}
    found = fetch("llama-cpp-python", "0.3.1", HASHES, tmp_path / "out", settings=settings)
    assert found.read_bytes() == DATA


def test_one_that_nobody_vouches_for_is_refused_with_a_hint_that_fits(
    https: tuple[Server, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = https
    index = f"https://{server.host}/simple"
    with pytest.raises(NotFoundError) as caught:
        get(tmp_path / "out", index_url=index)
    assert "PIP_CERT" in requirements_file.hint(str(caught.value))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with pytest.raises(NotFoundError, match=r"the certificate file .*gone\.pem does not exist"):
        get(tmp_path / "out", index_url=index)


def test_a_machine_without_authorities_takes_those_that_pip_brings(
    https: tuple[Server, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """python.org's Python for macOS, until somebody runs "Install Certificates"."""
    import pip._vendor.certifi

    server, certificate = https
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty/none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(pip._vendor.certifi, "where", lambda: str(certificate))
    index = f"https://{server.host}/simple"
    assert get(tmp_path / "out", index_url=index).read_bytes() == DATA
    monkeypatch.setitem(sys.modules, "pip._vendor.certifi", None)
    monkeypatch.setitem(sys.modules, "certifi", None)
    with pytest.raises(NotFoundError, match="CERTIFICATE_VERIFY_FAILED"):
        get(tmp_path / "out", index_url=index)


def test_pages_and_files_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(**{PAGE: as_json(f"/{FILE}"), FILE: FOUND}) as server:
        for bound in ("LARGEST_PAGE", "LARGEST_FILE"):
            with monkeypatch.context() as patch:
                patch.setattr(requirements_file, bound, 5)
                with pytest.raises(NotFoundError, match=r"is too large|is larger than"):
                    get(tmp_path, index_url=f"http://{server.host}/simple")
    assert list(tmp_path.iterdir()) == []


def test_as_a_program_it_speaks_as_pip_does(tmp_path: Path) -> None:
    def ask(*hashes: str) -> subprocess.CompletedProcess[str]:
        words = [
            sys.executable,
            "-I",
            requirements_file.__file__,
            "llama-cpp-python",
            "0.3.1",
            str(tmp_path / "out"),
            *hashes,
        ]
        env = {"PIP_INDEX_URL": f"http://{server.host}/simple"}
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False)

    with serving(**{PAGE: as_json(f"/{FILE}"), FILE: FOUND}) as server:
        refused, done = ask(HASHES[0]), ask(*HASHES)
    assert (refused.returncode, refused.stdout[:30]) == (1, "ERROR: llama-cpp-python 0.3.1 ")
    assert (done.returncode, done.stdout) == (0, f"Progress {len(DATA)} of {len(DATA)}\n")
