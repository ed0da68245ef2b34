"""Whatever a hub or a model's server says, the `download` process takes little memory, and leaves room on the disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.hive.models import fetch as fetching
from rbee_remote.hive.models.fetch import fetch
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import Problem, Retryable, Wanted, open_part
from rbee_remote.hive.models.redirects import MOST_OF_REDIRECT, Guard
from rbee_remote.protocol import DownloadRequest, ErrorCode, RemoteError, Source, encode
from rbee_remote.system.command import payload_command
from tests.patience import PATIENCE_S

MB = 2**20
REPO = "owner/tiny"
HF = Source(kind="hf", repo=REPO)
Answer = Callable[[BaseHTTPRequestHandler], None]

#: Runs a command with this stdin, and says at the end how much memory it had at most, in bytes.
AND_ITS_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024), end="")
"""


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """512 KiB that unpack to 512 MiB."""
    unpacked, packed = bytes(MB), b""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    for _ in range(512):
        packed += packer.compress(unpacked)
    return bytes(packed + packer.flush())


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server's address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:
                self.close_connection = True  # the client has gone away, as it should

        def end_headers(self) -> None:
            # Said, not only done: a client that is not told keeps the connection, and may send on it as it closes.
            self.send_header("Connection", "close")
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Transfer_Encoding" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def say_pieces(handler: BaseHTTPRequestHandler, status: int, piece: bytes, count: int, **headers: str) -> None:
    say(handler, status, b"", Transfer_Encoding="chunked", **headers)
    for _ in range(count):
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


def download(url: str, source: Source, target: Path) -> tuple[dict[str, Any], int]:
    """The error that it ends with, and how many bytes of memory it took at most."""
    command = payload_command("download", "--target", str(target), "--first-delay=0.01")
    request = json.dumps(encode(DownloadRequest("m", (source,), endpoint=url)))
    words = [sys.executable, "-c", AND_ITS_MEMORY, *command]
    done = subprocess.run(words, input=request, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "Traceback" not in done.stderr
    lines, _, peak = done.stdout.rpartition("\n")
    error: dict[str, Any] = json.loads(lines.splitlines()[-1])["error"]
    return error, int(peak)


@pytest.mark.parametrize("status", [200, 302, 404, 503])
@pytest.mark.parametrize("kind", ["hf", "https"])
def test_a_packed_answer_is_refused_before_it_is_unpacked(bomb: bytes, tmp_path: Path, kind: str, status: int) -> None:
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        location = {"Location": f"/again{handler.path}"[:80]} if status == 302 else {}
        say(handler, status, bomb, Content_Encoding="gzip", **location)

    with answering(answer) as url:
        source = HF if kind == "hf" else Source(kind="https", url=f"{url}/m.gguf")
        error, peak = download(url, source, tmp_path / "m.gguf")
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "is compressed" in error["message"]
    assert set(asked) == {"identity"}
    assert peak < 200 * MB


def test_an_answer_of_the_hub_has_a_bound(tmp_path: Path) -> None:
    with answering(lambda handler: say_pieces(handler, 200, b"[" * MB, 1000)) as url:
        error, peak = download(url, HF, tmp_path / "m.gguf")
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "is longer than" in error["message"]
    assert peak < 200 * MB


@pytest.mark.parametrize("kind", ["hf", "https"])
def test_so_has_what_comes_with_a_redirect(tmp_path: Path, kind: str) -> None:
    with answering(lambda handler: say_pieces(handler, 302, bytes(MB), 1000, Location="/x")) as url:
        source = HF if kind == "hf" else Source(kind="https", url=f"{url}/m.gguf")
        error, peak = download(url, source, tmp_path / "m.gguf")
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "is longer than" in error["message"]
    assert peak < 200 * MB


@pytest.mark.parametrize(
    "said", [b"[]", b"1", b'{"siblings": [1]}', b"[" * 10**6, b'{"siblings": [{"rfilename": "a.gguf", "lfs": 3}]}']
)
def test_an_answer_of_another_shape_is_the_hubs_fault(tmp_path: Path, said: bytes) -> None:
    with answering(lambda handler: say(handler, 200, said)) as url:
        error, _ = download(url, HF, tmp_path / "m.gguf")
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "cannot be read" in error["message"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is for Linux")
def test_the_process_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """And says in words that it was reached: an answer that is small, and large when it is read."""
    limited = (
        "import json, sys; from rbee_remote.hive.models import download, hub\n"
        "hub.resolve = lambda *_, **__: bytes(download.MOST_MEMORY)\n"
        "from rbee_remote.protocol import RemoteError\n"
        "try:\n    download.main(sys.argv[1:])\n"
        "except RemoteError as error:\n    sys.stdout.write(error.message)"
    )
    root = str(Path(fetching.__file__).parents[2])
    words = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {root!r})\n{limited}",
        "--target",
        str(tmp_path / "m.gguf"),
    ]
    request = json.dumps(encode(DownloadRequest("m", (HF,))))
    done = subprocess.run(words, input=request, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout.endswith("needs more memory than any download should"), done.stderr


# --- the disk ---------------------------------------------------------------------------------------------------------


def fetched(url: str, target: Path, wanted: Wanted) -> None:
    with httpx.Client(follow_redirects=True) as client, open_part(target) as part:
        Guard(client)
        fetch(client, wanted, part, lambda _, __: None)
        part.finish()


def test_a_file_without_end_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of which 3 MB are left to it: nothing is left of what came."""
    usage, part = shutil.disk_usage, tmp_path / "m.gguf.part"

    def free(folder: Path) -> Any:
        return usage(folder)._replace(free=fetching.KEPT_FREE + 3 * MB - part.stat().st_size)

    monkeypatch.setattr(fetching, "LOOKED_AT_EVERY", MB)
    monkeypatch.setattr(shutil, "disk_usage", free)
    answer: Answer = lambda handler: say_pieces(handler, 200, bytes(MB), 100)  # noqa: E731
    with answering(answer) as url, pytest.raises(RemoteError) as caught:
        fetched(url, tmp_path / "m.gguf", Wanted(url, "", None))
    assert caught.value.code is ErrorCode.DISK_FULL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length_too", [False, True])
def test_a_file_is_no_longer_than_the_hub_says(tmp_path: Path, length_too: bool) -> None:
    sent = 0

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        headers = {"Content_Length": str(100 * MB)} if length_too else {"Transfer_Encoding": "chunked"}
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write((b"" if length_too else b"%x\r\n" % MB) + bytes(MB) + (b"" if length_too else b"\r\n"))
            sent += MB

    with answering(answer) as url, pytest.raises(Retryable) as caught:
        fetched(url, tmp_path / "m.gguf", Wanted(url, "", MB))
    assert caught.value.problem is Problem.CORRUPT
    assert f"instead of {MB}" in caught.value.reason
    assert sent < 50 * MB
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("header", ["Retry_After", "Content_Range"])
@pytest.mark.parametrize("number", ["²", "9" * 5000])
def test_a_number_that_is_none_is_left_out(tmp_path: Path, header: str, number: str) -> None:
    status = 503 if header == "Retry_After" else 206
    value = number if header == "Retry_After" else f"bytes {number}-1/{number}"

    def answer(handler: BaseHTTPRequestHandler) -> None:
        say(handler, status, b"", **{header: value})

    with answering(answer) as url, pytest.raises(Retryable):
        fetched(url, tmp_path / "m.gguf", Wanted(url, "", None))


def test_an_ordinary_redirect_is_followed(tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/":
            say(handler, 302, bytes(MOST_OF_REDIRECT), Location="/file")
        else:
            say(handler, 200, b"whole", Content_Encoding="identity")

    with answering(answer) as url:
        fetched(url, tmp_path / "m.gguf", Wanted(url, "", None))
    assert (tmp_path / "m.gguf").read_bytes() == b"whole"
