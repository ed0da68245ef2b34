"""What fetches files on nodes, run as there: by a Python of its own, from servers on loopback that behave badly."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rbee.setup.base import fetch_files
from tests.patience import PATIENCE_S
from tests.tls import server_context
from tests.unit.setup.wheel_server import Answer, WheelServer, body, ranges, redirect, serving, status

MIB = 2**20
DATA = bytes(range(256)) * (5 * MIB // 256)
#: Short ones, so that servers that say nothing cost no time.
LIMITS = {"answer_s": 5, "stall_s": 1.0, "whole_s": 30, "tries": 3, "pause_s": 0.01}


@dataclass
class Bed:
    server: WheelServer
    trusted: Path
    target: Path
    ranges: list[str]

    @property
    def part(self) -> Path:
        return self.target.with_name(f".{self.target.name}.part")

    def serve(self, answer: Answer) -> None:
        def noting(request: BaseHTTPRequestHandler) -> None:
            self.ranges.append(request.headers.get("Range", ""))
            answer(request)

        self.server.paths["/file"] = noting

    def start(self, url: str = "", **changes: float | str) -> subprocess.Popen[str]:
        limits = {name: changes.pop(name, value) for name, value in LIMITS.items()}
        words = [json.dumps(limits), hashlib.sha256(DATA).hexdigest(), url or f"{self.server.url}/file", self.target]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {"SSL_CERT_FILE": str(self.trusted)} | {name: str(value) for name, value in changes.items()}
        program = Path(fetch_files.__file__).read_text()
        command = [sys.executable, "-I", "-c", program, *map(str, words)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def fetch(self, url: str = "", **changes: float | str) -> tuple[int, str]:
        """The exit status and the last line."""
        with self.start(url, **changes) as process:
            said, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, (said.splitlines() or [""])[-1]


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    context, trusted = server_context(tmp_path)
    with serving(context) as server:
        yield Bed(server, trusted, tmp_path / "there" / "wheel", [])


def leave_part(bed: Bed, data: bytes) -> None:
    bed.part.parent.mkdir()
    bed.part.write_bytes(data)


def test_a_file_comes_whole_over_a_connection_that_breaks(bed: Bed) -> None:
    bed.serve(ranges(DATA, 2 * MIB))
    assert bed.fetch() == (0, "fetched")
    assert bed.target.read_bytes() == DATA
    assert bed.target.stat().st_mode & 0o777 & ~0o644 == 0
    assert bed.ranges == ["", f"bytes={2 * MIB}-", f"bytes={4 * MIB}-"]
    assert not bed.part.exists()


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        (DATA[:MIB], [f"bytes={MIB}-"]),
        (DATA, [f"bytes={5 * MIB}-"]),  # all but its name
        (b"wrong", ["bytes=5-", ""]),
    ],
)
def test_what_an_interrupted_one_left_is_gone_on_with(bed: Bed, part: bytes, asked: list[str]) -> None:
    leave_part(bed, part)
    bed.serve(ranges(DATA))
    assert bed.fetch() == (0, "fetched")
    assert bed.target.read_bytes() == DATA
    assert bed.ranges == asked


def test_a_server_that_knows_no_ranges_sends_all_of_it_again(bed: Bed) -> None:
    leave_part(bed, DATA[:MIB])
    bed.serve(body(DATA))
    assert bed.fetch() == (0, "fetched")
    assert bed.target.read_bytes() == DATA


def test_one_that_is_ended_leaves_its_part_and_one_whose_file_is_there_asks_nobody(bed: Bed) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(DATA)))
        request.end_headers()
        request.wfile.write(DATA[:MIB])
        bed.server.ended.wait()

    bed.serve(slow)
    with bed.start(stall_s=30) as process:
        assert process.stdout
        while "progress 0" not in (said := process.stdout.readline()):
            assert said
        process.send_signal(signal.SIGHUP)
    assert bed.part.exists()
    bed.target.write_bytes(b"")
    asked = len(bed.server.asked)
    assert bed.fetch() == (0, "fetched")
    assert len(bed.server.asked) == asked
    assert not bed.part.exists()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (body(DATA[:-1] + b"x"), "failed what came has another SHA-256 than the locked one"),
        (ranges(DATA, 1000), "failed the connection ended after 3000 of 5242880 bytes"),
        (status(404), "failed HTTP Error 404: Not Found"),
        (redirect("http://127.0.0.1:1/"), "failed it leads to an address that is not https"),
        (
            redirect("file:///etc/passwd"),
            "failed HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed",
        ),
    ],
    ids=["wrong", "breaks each time", "missing", "to http", "to a file"],
)
def test_what_fails_says_why_and_leaves_nothing(bed: Bed, answer: Answer, said: str) -> None:
    bed.serve(answer)
    assert bed.fetch() == (1, said)
    assert list(bed.target.parent.iterdir()) == []


def test_a_file_that_is_too_large_or_of_no_length_is_not_begun(bed: Bed) -> None:
    def headed(**headers: str) -> Answer:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()

        return answer

    bed.serve(headed(Content_Length=str(2**30 + 1)))
    assert bed.fetch() == (1, "failed it is larger than 1024 MiB")
    bed.serve(headed())
    assert bed.fetch() == (1, "failed the server does not say how long it is")


@pytest.mark.parametrize("pause", [0.05, 60.0], ids=["dribbles", "stops"])
def test_a_server_that_stalls_is_given_up(bed: Bed, pause: float) -> None:
    def stalling(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(DATA)))
        request.end_headers()
        for begin in range(0, len(DATA), 1000):
            request.wfile.write(DATA[begin : begin + 1000])
            if bed.server.ended.wait(pause):
                return

    bed.serve(stalling)
    code, said = bed.fetch()
    assert code == 1
    assert "timed out" in said or "less than 1 MiB came in 1 s" in said
    assert len(bed.ranges) == 1


def test_a_server_that_is_slow_in_all_has_a_limit(bed: Bed) -> None:
    bed.serve(bed.server.stalls_after(2 * MIB))
    assert bed.fetch(whole_s=0.3, stall_s=30) == (1, "failed it took too long")


def test_where_nobody_answers_it_ends_at_once(bed: Bed) -> None:
    bed.serve(bed.server.hang)
    begun = time.monotonic()
    assert bed.fetch(answer_s=0.5) == (-signal.SIGALRM, "")
    assert time.monotonic() - begun < PATIENCE_S / 2


def test_only_servers_that_prove_who_they_are_and_https_are_spoken_with(bed: Bed, tmp_path: Path) -> None:
    nobody = tmp_path / "nobody.pem"
    nobody.touch()
    code, said = bed.fetch(SSL_CERT_FILE=str(nobody))
    assert code == 1
    assert "certificate verify failed" in said
    assert bed.fetch(bed.server.url.replace("https", "http")) == (1, "failed it leads to an address that is not https")
    assert bed.server.asked == []


def test_a_nodes_proxy_counts(bed: Bed) -> None:
    with serving() as proxy:
        code, _ = bed.fetch(https_proxy=proxy.url)
        assert code == 1
        assert bed.server.asked == []
