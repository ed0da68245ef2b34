"""The real worker: a process of its own with llama.cpp and the real model."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.sandbox import landlock
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.model

REMOTE = Path(__file__).parents[4] / "remote"
Start = Callable[..., "Process"]

#: Several threads that wait for each other are slow on a busy machine.
ONE_THREAD = WorkerOptions(backend="cpu", threads=1)


class Process:
    """A worker process, its status pipe read to the end by a thread."""

    def __init__(self, config: WorkerConfig, log: Path, *, path: Path = REMOTE) -> None:
        read_end, write_end = os.pipe()
        self.read_end = read_end
        self.socket = Path(config.socket)
        self.log = log
        command = [sys.executable, "-m", "rbee_remote", "worker", "--status-fd", str(write_end)]
        with log.open("wb") as stderr:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stderr=stderr,
                pass_fds=[write_end],
                env={**os.environ, "PYTHONPATH": str(path)},
            )
        os.close(write_end)
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(asdict(config)).encode())
        self.child.stdin.close()
        self.statuses: list[dict[str, Any]] = []
        self.started: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=config.socket), base_url="http://worker", timeout=PATIENCE_S
        )

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.01)

    def ready(self) -> Process:
        self.until(lambda: any(status["state"] == "idle" for status in self.statuses))
        return self

    def ask(self, prompt: str, **values: Any) -> tuple[str, dict[str, Any]]:
        """The answer to a chat message, and what `done` or `error` says."""
        messages = [{"role": "user", "content": prompt}]
        return self.generate(messages=messages, **{"sampling": {"temperature": 0}, **values})

    def generate(self, **body: Any) -> tuple[str, dict[str, Any]]:
        response = self.client.post("/v1/inference", json={"request_id": uuid.uuid4().hex, **body})
        assert response.status_code == 200, response.text
        text, data = "", {}
        for line in response.text.splitlines():
            if line.startswith("data: "):
                data = json.loads(line[6:])
                text += data.get("text", "")
                if "reused_tokens" in data:
                    self.started.append(data)
        return text, data

    def end(self) -> int:
        """Wait until it has ended; its exit status."""
        status = self.child.wait(PATIENCE_S)
        self._reader.join()
        return status

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.end()
        self.client.close()

    def _read(self) -> None:
        with os.fdopen(self.read_end) as lines:
            for line in lines:
                self.statuses.append(json.loads(line))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def start(folder: Path, model_path: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def run(**values: Any) -> Process:
            settings = {
                "options": ONE_THREAD,
                "ctx": 512,
                "keep_alive_s": 60.0,
                "path": str(model_path),
                **values,
            }
            config = WorkerConfig(id="a" * 16, model="m", socket=str(folder / "w.sock"), **settings)
            process = Process(config, tmp_path / "log")
            stack.callback(process.close)
            return process

        yield run


def test_it_is_confined_before_it_opens_the_model(start: Start) -> None:
    """What that means is tried out in tests/unit/sandbox; here it is in force for every thread."""
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    worker = start(options=WorkerOptions(backend="cpu", threads=2)).ready()
    assert {status["sandbox"] for status in worker.statuses if status["state"] == "idle"} == {"landlock+seccomp"}
    threads = list(Path(f"/proc/{worker.child.pid}/task").iterdir())
    assert len(threads) > 1
    for thread in threads:
        fields = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2"), thread
    assert worker.ask("Hi", max_tokens=4)[1]["finish_reason"] in {"stop", "length"}


def test_it_is_not_confined_where_the_inventory_says_so(start: Start) -> None:
    free = start(sandbox="off").ready()
    assert {status["sandbox"] for status in free.statuses if status["state"] == "idle"} == {"off"}


def test_the_model_answers(start: Start) -> None:
    worker = start().ready()
    text, done = worker.ask("Name the capital of France.", max_tokens=32)
    assert "Paris" in text
    assert done["finish_reason"] == "stop"
    assert done["usage"]["completion_tokens"] > 1
    assert "<|" not in text


def test_a_seed_makes_an_answer_repeatable(start: Start) -> None:
    worker = start().ready()

    def sampled(seed: int) -> str:
        return worker.ask("Tell me a story.", max_tokens=24, sampling={"temperature": 1.5, "seed": seed})[0]

    assert sampled(1) == sampled(1) != sampled(2)


def test_a_raw_prompt_is_continued_without_the_template(start: Start) -> None:
    text, done = start().ready().generate(prompt="1, 2, 3, 4, 5,", max_tokens=6, sampling={"temperature": 0})
    assert text.startswith(" 6, 7")
    assert done["usage"]["prompt_tokens"] < 20


def test_stop_strings_and_a_penalty_work_on_real_tokens(start: Start) -> None:
    worker = start().ready()
    text, done = worker.generate(prompt="1, 2, 3, 4, 5,", stop=["8"], max_tokens=32, sampling={"temperature": 0})
    assert (text, done["finish_reason"]) == (" 6, 7, ", "stop")
    looping = {"prompt": "ha ha ha ha ha ha ha ha", "max_tokens": 12}
    plain, _ = worker.generate(**looping, sampling={"temperature": 0})
    penalised, _ = worker.generate(**looping, sampling={"temperature": 0, "repeat_penalty": 3.0})
    assert plain.count(" ha") > penalised.count(" ha")


def test_a_prompt_longer_than_the_context_is_refused_with_figures(start: Start) -> None:
    worker = start().ready()
    response = worker.client.post("/v1/inference", json={"request_id": "a" * 32, "prompt": "word " * 600})
    assert response.status_code == 400
    assert response.json()["error"]["details"] == {"prompt_tokens": 601, "ctx": 512}


def test_eight_requests_on_two_slots_get_the_answers_they_would_get_alone(start: Start) -> None:
    worker = start(slots=2).ready()
    prompts = [f"{n}, {n + 1}, {n + 2}, {n + 3}," for n in range(1, 9)]

    def complete(prompt: str) -> str:
        return worker.generate(prompt=prompt, max_tokens=4, sampling={"temperature": 0})[0]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(complete, prompts))
    assert together == [complete(prompt) for prompt in prompts]
    assert max(status["queued"] for status in worker.statuses) > 0
    assert min(status["slots_free"] for status in worker.statuses) == 0
    assert worker.client.get("/v1/health").json()["slots_free"] == 2


TOLD = [{"role": "system", "content": "You answer questions about the countries of Europe, shortly and truly. " * 4}]


def told(question: str) -> list[dict[str, str]]:
    return [*TOLD, {"role": "user", "content": question}]


def test_the_next_turn_of_a_chat_computes_only_what_is_new_and_answers_the_same(start: Start) -> None:
    worker = start(slots=2, ctx=1024).ready()
    chat = told("Name the capital of France.")
    first, _ = worker.generate(messages=chat, sampling={"temperature": 0}, max_tokens=16)
    chat += [{"role": "assistant", "content": first}, {"role": "user", "content": "And that of Spain?"}]
    second, done = worker.generate(messages=chat, sampling={"temperature": 0}, max_tokens=16)
    assert worker.started[-1]["reused_tokens"] > 0.7 * done["usage"]["prompt_tokens"]
    # With a seed nothing is taken over from other requests.
    alone, _ = worker.generate(messages=chat, sampling={"temperature": 0, "seed": 1}, max_tokens=16)
    assert worker.started[-1]["reused_tokens"] == 0
    assert second == alone


def test_requests_at_once_compute_their_common_system_prompt_once(start: Start) -> None:
    worker = start(slots=4, ctx=512).ready()
    capitals = {"France": "Paris", "Italy": "Rom", "Germany": "Berlin", "Greece": "Athens"}

    def capital(country: str) -> str:
        chat = told(f"Name the capital of {country}.")
        return worker.generate(messages=chat, sampling={"temperature": 0}, max_tokens=12)[0]

    with ThreadPoolExecutor(4) as pool:
        answers = dict(zip(capitals, pool.map(capital, capitals), strict=True))
    reused = sorted(started["reused_tokens"] for started in worker.started)
    assert reused[0] == 0
    assert reused[1] > 50
    assert all(capitals[country] in answer for country, answer in answers.items()), answers


def test_every_slot_has_the_whole_context(start: Start) -> None:
    worker = start(slots=2, ctx=256).ready()
    with ThreadPoolExecutor(2) as pool:
        prompts = ["a " * 200, "b " * 200]
        answers = list(pool.map(lambda prompt: worker.generate(prompt=prompt, stop=["\u0000"]), prompts))
    for _, done in answers:
        used = done["usage"]["prompt_tokens"] + done["usage"]["completion_tokens"]
        assert done["finish_reason"] == "stop" or used == 256


def test_cancel_interrupts_a_long_prompt(start: Start) -> None:
    """8,000 tokens take this model many steps; the cancel does not wait for them, nor for the one that runs."""
    worker = start(ctx=8192).ready()
    request_id = uuid.uuid4().hex
    body = {"request_id": request_id, "prompt": "word " * 8000}
    with worker.client.stream("POST", "/v1/inference", json=body) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: started"
        assert worker.client.delete(f"/v1/requests/{request_id}").status_code == 202
        rest = list(lines)
    assert "event: token" not in rest
    done = json.loads(next(line[6:] for line in reversed(rest) if line.startswith("data: ")))
    assert done["finish_reason"] == "canceled"
    assert "Paris" in worker.ask("Name the capital of France.", max_tokens=32)[0]


def test_health_is_there_before_the_model_and_shows_progress(start: Start) -> None:
    worker = start()
    worker.until(worker.socket.exists)
    assert worker.client.get("/v1/health").json()["state"] in ("loading", "idle")
    worker.ready()
    shares = [status["progress"] for status in worker.statuses]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert worker.socket.stat().st_mode & 0o777 == 0o600


def test_keep_alive_ends_the_worker_and_leaves_no_socket(start: Start) -> None:
    worker = start(keep_alive_s=0.5).ready()
    worker.ask("Hi", max_tokens=1)
    assert worker.end() == 0
    assert not worker.socket.exists()
    assert worker.statuses[-1]["state"] == "stopping"


def test_sigterm_cancels_what_runs(start: Start) -> None:
    worker = start(ctx=8192).ready()
    body = {"request_id": uuid.uuid4().hex, "prompt": "word " * 8000}
    with worker.client.stream("POST", "/v1/inference", json=body) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: started"
        worker.child.send_signal(signal.SIGTERM)
        assert any('"finish_reason": "canceled"' in line for line in lines)
    assert worker.end() == 0
    assert not worker.socket.exists()


def test_a_hive_that_dies_takes_the_worker_along(folder: Path, model_path: Path, tmp_path: Path) -> None:
    """All that a hive is to its worker is the read end of the pipe, which closes when the hive dies."""
    config = WorkerConfig("a" * 16, "m", str(model_path), str(folder / "w.sock"), WorkerOptions(), 512, -1.0)
    read_end, write_end = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "rbee_remote", "worker", "--status-fd", str(write_end)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[write_end],
        env={**os.environ, "PYTHONPATH": str(REMOTE)},
    )
    os.close(write_end)
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(asdict(config)).encode())
    worker.stdin.close()
    with os.fdopen(read_end) as lines:
        assert any(json.loads(line)["state"] == "idle" for line in lines)
    assert worker.wait(PATIENCE_S) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "MODEL_NOT_FOUND"), (b"<html>", "MODEL_INVALID"), (b"GGUF\x03\0\0\0" + b"\xff" * 64, "MODEL_INVALID")],
    ids=["missing", "not GGUF", "broken GGUF"],
)
def test_a_bad_file_fails_with_a_reason(start: Start, tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    worker = start(path=str(path))
    assert worker.end() == 1
    assert worker.statuses[-1]["state"] == "failed"
    assert worker.statuses[-1]["error"]["code"] == code
    assert not worker.socket.exists()


def test_a_truncated_model_is_invalid(start: Start, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with model_path.open("rb") as whole:
        path.write_bytes(whole.read(20_000_000))
    worker = start(path=str(path))
    assert worker.end() == 1
    assert worker.statuses[-1]["error"]["code"] == "MODEL_INVALID"
    assert worker.statuses[-1]["error"]["details"]["llama.cpp"]


def test_a_backend_that_is_not_there_is_named(start: Start) -> None:
    worker = start(options=WorkerOptions(backend="metal"))
    assert worker.end() == 1
    error = worker.statuses[-1]["error"]
    assert error["code"] == "BACKEND_UNAVAILABLE"
    assert "cpu" in error["details"]["available"]


def test_a_context_larger_than_memory_is_out_of_memory(start: Start) -> None:
    """200,000 tokens need 4.5 GB of cache, and the process may have 3."""
    worker = start(ctx=200_000)
    resource.prlimit(worker.child.pid, resource.RLIMIT_AS, (3 << 30, 3 << 30))
    assert worker.end() == 1
    error = worker.statuses[-1]["error"]
    assert error["code"] == "RAM_EXHAUSTED"
    assert "1 x 200000 tokens" in error["message"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"slots": 0}, "slots must be from 1 to"),
        ({"slots": 100_000}, "slots must be from 1 to"),
        ({"ctx": 0}, "ctx must be from 1 to"),
        ({"ctx": 2**31, "slots": 4}, "ctx must be from 1 to"),
        ({"options": WorkerOptions(threads=-1)}, "threads must be from 1 to"),
    ],
)
def test_impossible_options_are_named(start: Start, values: dict[str, Any], words: str) -> None:
    worker = start(**values)
    assert worker.end() == 1
    assert worker.statuses[-1]["error"]["code"] == "USAGE"
    assert words in worker.statuses[-1]["error"]["message"]


def test_a_bad_configuration_is_exit_2(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "rbee_remote", "worker"],
        input=b'{"id": 1}',
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REMOTE)},
        check=False,
    )
    assert ended.returncode == 2
    assert b"WorkerConfig.id" in ended.stderr
