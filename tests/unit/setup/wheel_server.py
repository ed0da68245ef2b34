"""An index of wheels on loopback, which can be told to behave badly, and wheels made of the real llama.cpp."""

from __future__ import annotations

import hashlib
import importlib.util
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rbee.setup.base.platforms import Target
from tests.unit.setup.tiny_packages import write_wheel

PAGE = "cpu/llama-cpp-python/"
VERSION = "0.3.36"
TAG = f"py3-none-linux_{Target.here().machine}"
NAME = f"llama_cpp_python-{VERSION}-{TAG}.whl"

Answer = Callable[[BaseHTTPRequestHandler], None]


def real_files() -> dict[str, bytes]:
    """What a worker needs of the installed llama-cpp-python: the bindings, libllama, and ggml with two CPU variants."""
    found = importlib.util.find_spec("llama_cpp")
    assert found, "`make dev` installs it"
    assert found.origin
    site = Path(found.origin).parents[1]
    names = ["libllama.so", "libggml.so", "libggml.so.0", "libggml-base.so.0", "libgomp.so.1"]
    paths = [f"llama_cpp/{name}" for name in ("__init__.py", "llama_cpp.py")]
    paths += [f"llama_cpp/lib/{name}" for name in names if (site / "llama_cpp/lib" / name).exists()]
    variants = sorted(path.name for path in (site / "bin").glob("libggml-cpu-*"))
    two = [name for name in variants if name[12:-3] in ("x64", "haswell")] or variants[:2]
    paths += [f"bin/{name}" for name in two]
    return {path: (site / path).read_bytes() for path in paths}


def make_wheel(folder: Path, changes: Mapping[str, bytes] | None = None) -> Path:
    """A wheel of the locked version. changes: files in place of the real ones."""
    return write_wheel(folder, "llama_cpp_python", {**real_files(), **(changes or {})}, version=VERSION, tag=TAG)


class WheelServer:
    """paths: what answers where; anything else is a 404. ended: set when the test is over."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.paths: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.ended = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.paths.get(self.path, status(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.http.server_address[1]}"
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)

    def offer(self, wheel: Path, *, name: str = NAME, sha256: str | None = None, backend: str = "cpu") -> None:
        """Put a wheel there. sha256: what its page says, by default the truth."""
        page = f"{backend}/llama-cpp-python/"
        data = wheel.read_bytes()
        said = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
        self.page(f'<a href="{name}{f"#sha256={said}" if said else ""}">{name}</a>', page)
        self.paths[f"/{page}{name}"] = body(data)

    def page(self, text: str, page: str = PAGE) -> None:
        self.paths[f"/{page}"] = body(text.encode(), "text/html")

    def hang(self, _: BaseHTTPRequestHandler) -> None:
        self.ended.wait()

    def stalls_after(self, count: int) -> Answer:
        """Gives `count` bytes of more, and nothing further."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            _head(request, "application/zip", 2 * count)
            request.wfile.write(b"PK" + bytes(count - 2))
            self.ended.wait()

        return answer


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[WheelServer]:
    server = WheelServer(tls)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def status(code: int) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_error(code)

    return answer


def body(data: bytes, kind: str = "application/zip") -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        _head(request, kind, len(data))
        request.wfile.write(data)

    return answer


def ranges(data: bytes, most: int | None = None) -> Answer:
    """From where it is asked for on; the connection ends after `most` bytes."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        begin = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if begin >= len(data):
            request.send_error(416)
            return
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(data) - begin))
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        request.wfile.write(data[begin:] if most is None else data[begin : begin + most])

    return answer


def redirect(place: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", place)
        request.end_headers()

    return answer


def endless(request: BaseHTTPRequestHandler) -> None:
    """Without a length, until nobody listens any more."""
    _head(request, "text/html", None)
    piece = b"<a href='x'>" * 2**13
    while True:
        try:
            request.wfile.write(piece)
        except OSError:
            return


def _head(request: BaseHTTPRequestHandler, kind: str, length: int | None) -> None:
    request.send_response(200)
    request.send_header("Content-Type", kind)
    if length is not None:
        request.send_header("Content-Length", str(length))
    request.end_headers()
