"""The hive's routes, asked over its socket as a keeper does."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import DownloadRequest, Source, encode
from rbee_remote.protocol.audit import unpack_head, verify
from tests import tiny_adapters, tiny_models
from tests.hub import COMMIT, Hub, Trouble
from tests.patience import PATIENCE_S
from tests.testbed.node import wait_until
from tests.unit.remote.hive.conftest import HiveFolder, make_gguf

REPO = "owner/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


@contextmanager
def streaming(hive: HiveFolder, method: str, target: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
    connection = _Connection(hive.layout.hive_socket)
    headers = {"X-Rbee-Keeper": "keeper\x011", "X-Rbee-Who": "b%C3%A9e@%1b[31mhost"}
    connection.request(method, target, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def pull_request(hub: Hub, **fields: Any) -> dict[str, Any]:
    source = Source(kind="hf", repo=REPO)
    return encode(DownloadRequest(fields.pop("model", "tiny"), (source,), endpoint=hub.url, **fields))


def model_files(hive: HiveFolder) -> list[str]:
    return sorted(path.name for path in hive.layout.models.iterdir() if path.suffix != ".json")


def part_size(hive: HiveFolder) -> int:
    return sum(path.stat().st_size for path in hive.layout.models.glob("*.part"))


def test_the_version_is_the_projects(hive: HiveFolder) -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    assert hive.ask("GET", "/v1/health")[1]["version"] == project["version"]


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("POST", "/v1/workers", {}),
        ("POST", "/v1/workers", []),
        ("POST", "/v1/workers", {"model": 1}),
        ("POST", "/v1/workers", {"model": "m", "options": {"slots": "two"}}),
        ("POST", "/v1/preflight", {"model": "\x00"}),
        ("POST", "/v1/models/needs", {"model": "m", "ctx": [0]}),
        ("POST", "/v1/models/needs", {"model": "m", "slots": [1, 1000]}),
        ("POST", "/v1/stop", {"drain": "yes"}),
        ("POST", "/v1/models", {"model": "m", "path": "../../etc/passwd"}),
        ("POST", "/v1/models", {"model": "m", "path": "/etc/passwd"}),
        ("POST", "/v1/models", {"model": "m", "path": "a\x00b"}),
        ("POST", "/v1/models", {"model": "m", "path": "a", "sha256": "../x"}),
        ("POST", "/v1/models/pull", {"model": "a\nb", "sources": []}),
        ("GET", "/v1/workers/..hive", None),
        ("DELETE", "/v1/models", None),
    ],
)
def test_what_makes_no_sense_is_refused(shared_hive: HiveFolder, method: str, target: str, body: Any) -> None:
    status, answer = shared_hive.ask(method, target, body)
    assert (status, answer["error"]["code"]) == (400, "USAGE")
    assert shared_hive.ask("GET", "/v1/health")[0] == 200


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("POST", "/v1/workers", {"model": "m"}, 404, "MODEL_NOT_FOUND"),
        ("POST", "/v1/models/needs", {"model": "m"}, 404, "MODEL_NOT_FOUND"),
        ("DELETE", "/v1/models?model=m", None, 404, "MODEL_NOT_FOUND"),
        ("POST", "/v1/models", {"model": "m", "path": "nothing.gguf"}, 404, "MODEL_NOT_FOUND"),
        ("POST", "/v1/models", {"model": "m", "path": "x" * (2 << 20)}, 413, "USAGE"),
        ("GET", "/v1/workers/0123456789abcdef", None, 410, "WORKER_GONE"),
        ("GET", "/v1/workers/0123456789abcdef/events", None, 410, "WORKER_GONE"),
    ],
)
def test_what_is_not_there_or_too_large_says_so(
    shared_hive: HiveFolder, method: str, target: str, body: Any, status: int, code: str
) -> None:
    got, answer = shared_hive.ask(method, target, body)
    assert (got, answer["error"]["code"]) == (status, code)


def test_a_file_that_is_no_model_is_not_registered(hive: HiveFolder) -> None:
    (hive.layout.models / "text.gguf").write_text("once upon a time")
    status, answer = hive.ask("POST", "/v1/models", {"model": "m", "path": "text.gguf"})
    assert (status, answer["error"]["code"]) == (422, "MODEL_INVALID")
    assert hive.ask("GET", "/v1/models") == (200, {"models": []})


def test_a_wrong_checksum_is_not_registered(hive: HiveFolder, tiny_gguf: Path) -> None:
    shutil.copy(tiny_gguf, hive.layout.models / "a.gguf")
    status, answer = hive.ask("POST", "/v1/models", {"model": "m", "path": "a.gguf", "sha256": "0" * 64})
    assert status == 502
    assert answer["error"]["details"]["found"] == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()


def test_an_owned_model_is_named_by_its_checksum_and_removed_with_its_file(hive: HiveFolder, tiny_gguf: Path) -> None:
    info = hive.register("m", tiny_gguf)
    sha256 = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert model_files(hive) == [f"{sha256}.gguf"]
    assert (info["owned"], info["sha256"], info["meta"]["n_head_kv"]) == (True, sha256, 2)
    assert hive.ask("GET", "/v1/models") == (200, {"models": [info]})
    assert hive.ask("DELETE", "/v1/models?model=m") == (200, info)
    assert model_files(hive) == []


def test_a_file_of_the_users_is_registered_where_it_lies(hive: HiveFolder, tiny_gguf: Path) -> None:
    model = f"file:{tiny_gguf}"
    status, info = hive.ask("POST", "/v1/models", {"model": model, "path": str(tiny_gguf)})
    assert status == 201
    assert (info["owned"], info["path"]) == (False, str(tiny_gguf))
    hive.ask("DELETE", f"/v1/models?model={model}")
    assert tiny_gguf.exists()


def test_a_pull_reports_and_registers(hive: HiveFolder, hub: Hub, tiny_gguf: Path) -> None:
    sha256 = hub.add(REPO, FILE, tiny_gguf.read_bytes())
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as response:
        got = list(events(response))
    assert {name for name, _ in got[:-1]} == {"progress"}
    name, info = got[-1]
    assert (name, info["model"], info["sha256"]) == ("done", "tiny", sha256)
    assert info["source"] == f"hf:{REPO}:{FILE}@{COMMIT}"
    assert hive.ask("GET", "/v1/models") == (200, {"models": [info]})
    assert model_files(hive) == [f"{sha256}.gguf"]


def test_a_pull_that_fails_ends_with_the_error(hive: HiveFolder, hub: Hub) -> None:
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as response:
        *_, (name, error) = events(response)
    assert (name, error["error"]["code"]) == ("error", "MODEL_NOT_FOUND")


def test_a_pull_of_what_is_no_model_is_not_registered(hive: HiveFolder, hub: Hub) -> None:
    hub.add(REPO, FILE, b"no model")
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as response:
        *_, (name, error) = events(response)
    assert (name, error["error"]["code"]) == ("error", "MODEL_INVALID")
    assert error["error"]["message"].startswith("tiny: ")
    assert hive.ask("GET", "/v1/models") == (200, {"models": []})
    assert list(hive.layout.models.iterdir()) == []


def test_a_pull_that_was_broken_off_goes_on_where_it_stopped(hive: HiveFolder, hub: Hub, tiny_gguf: Path) -> None:
    """Whatever is asked of the hive in between: every pull of a keeper begins with a look into the catalog."""
    hub.add(REPO, FILE, tiny_gguf.read_bytes())
    hub.trouble = Trouble(stall_after=50_000, times=1)
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub)):
        wait_until(lambda: part_size(hive) > 30_000, 15, lambda: f"no part: {model_files(hive)}")
    wait_until(lambda: len(hive.processes()) == 1, 15, lambda: f"still there: {hive.processes()}")
    assert hive.ask("GET", "/v1/models") == (200, {"models": []})
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as response:
        assert list(events(response))[-1][0] == "done"
    assert hub.content_requests()[-1].headers["range"] == "bytes=50000-"


@pytest.mark.parametrize(
    "body", ['{"model": "m", "keep_alive_s": Infinity}', f'{{"model": "m", "keep_alive_s": 1{"0" * 400}}}']
)
def test_a_number_that_json_does_not_have_is_refused(shared_hive: HiveFolder, body: str) -> None:
    connection = _Connection(shared_hive.layout.hive_socket)
    connection.request("POST", "/v1/workers", body)
    response = connection.getresponse()
    assert (response.status, b"keep_alive_s" in response.read()) == (400, True)
    connection.close()


def test_a_file_that_nobody_can_come_to_is_not_found(shared_hive: HiveFolder) -> None:
    path = f"/{'b' * 300}"
    status, answer = shared_hive.ask("POST", "/v1/models", {"model": f"file:{path}", "path": path})
    assert (status, answer["error"]["code"]) == (404, "MODEL_NOT_FOUND")


def test_two_pulls_of_one_model_share_a_download(hive: HiveFolder, hub: Hub, tiny_gguf: Path) -> None:
    hub.add(REPO, FILE, tiny_gguf.read_bytes())
    hub.trouble = Trouble(status=503, times=1)
    with (
        streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as one,
        streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as two,
    ):
        first, second = list(events(one))[-1], list(events(two))[-1]
    assert first == second
    assert first[0] == "done"
    assert len(hub.content_requests()) == 2, "one refused, one that brought it"


def test_a_pull_ends_with_its_last_client(hive: HiveFolder, hub: Hub) -> None:
    hub.add(REPO, FILE, random.Random(1).randbytes(500_000))
    hub.trouble = Trouble(stall_after=200_000)
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub)) as response:
        assert next(events(response))[0] == "progress"
        wait_until(lambda: part_size(hive) > 100_000, 15, lambda: f"no part: {model_files(hive)}")
        assert len(hive.processes()) == 2
    wait_until(lambda: len(hive.processes()) == 1, 15, lambda: f"still there: {hive.processes()}")
    assert part_size(hive) > 100_000, "the next pull goes on from there"


def test_a_token_is_in_no_command_line_and_no_log(
    folder: HiveFolder, tls_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hive, hub, token = folder, tls_hub, "hf_" + "z" * 30
    monkeypatch.setenv("SSL_CERT_FILE", str(hub.trusted))
    hive.start()
    hub.add(REPO, FILE, random.Random(1).randbytes(500_000))
    hub.token, hub.trouble = token, Trouble(stall_after=200_000)
    with streaming(hive, "POST", "/v1/models/pull", pull_request(hub, token=token)) as response:
        next(events(response))
        wait_until(lambda: len(hive.processes()) == 2, 15, lambda: f"no download: {hive.processes()}")
        wait_until(hub.content_requests, 15, lambda: "nothing was fetched")
        for process in hive.processes():
            assert token not in " ".join(process.cmdline())
            assert token not in " ".join(process.environ().values())
    assert all(token.encode() not in path.read_bytes() for path in hive.layout.logs.iterdir())


def test_each_line_of_the_audit_log_vouches_for_the_one_before(hive: HiveFolder, tiny_gguf: Path) -> None:
    hive.register("m", tiny_gguf)
    with streaming(hive, "DELETE", "/v1/models?model=m") as response:
        assert response.status == 200
    lines = hive.layout.audit_log.read_bytes().splitlines()
    entries = [json.loads(line) for line in lines]
    actions = [(entry["action"], entry["model"]) for entry in entries]
    assert actions == [("hive.start", ""), ("model.register", "m"), ("model.remove", "m")]
    assert (entries[2]["keeper"], entries[2]["who"]) == ("keeper\\x011", "bée@\\x1b[31mhost")
    assert entries[2]["host"] == os.uname().nodename
    assert verify(lines, unpack_head(hive.layout.logs.joinpath("audit.head").read_bytes())) == []


def test_a_changed_model_is_a_new_file(hive: HiveFolder, tiny_gguf: Path, tmp_path: Path) -> None:
    first = hive.register("m", tiny_gguf)
    second = hive.register("m", make_gguf(tmp_path / "other.gguf", block_count=3))
    assert first["path"] != second["path"]
    assert hive.ask("GET", "/v1/models")[1]["models"] == [second]


@pytest.mark.model
def test_a_real_worker_from_its_start_to_its_end(hive: HiveFolder, model_path: Path) -> None:
    hive.register("smollm2:135m", model_path)
    spawn = {"model": "smollm2:135m", "options": {"ctx": 512}}
    status, worker = hive.ask("POST", "/v1/workers", spawn)
    assert status == 201
    assert hive.ask("POST", "/v1/workers", spawn)[1]["id"] == worker["id"]
    with streaming(hive, "GET", f"/v1/workers/{worker['id']}/events") as response:
        states = [info["state"] for _, info in events(response)]
    assert states[-1] == "idle"
    assert set(states[:-1]) <= {"starting", "loading"}
    status, refused = hive.ask("DELETE", "/v1/models?model=smollm2:135m")
    assert (status, refused["error"]["code"]) == (409, "IN_USE")
    status, refused = hive.ask("DELETE", f"/v1/workers/{worker['id']}", {"only_idle_s": 3600})
    assert (status, refused["error"]["code"]) == (409, "IN_USE")
    assert "idle for" in refused["error"]["details"]["reason"]
    assert [lease["keeper"] for lease in hive.ask("GET", f"/v1/workers/{worker['id']}")[1]["leases"]] == [""]
    status, stopped = hive.ask("DELETE", f"/v1/workers/{worker['id']}", {"only_idle_s": 0})
    assert (status, stopped["state"]) == (200, "stopping")
    assert hive.ask("GET", "/v1/workers") == (200, {"workers": []})
    assert not Path(worker["socket"]).exists()
    assert Path(worker["log"]).stat().st_size > 0
    assert subprocess.run(["kill", "-0", str(worker["pid"])], capture_output=True, check=False).returncode == 1


@pytest.mark.model
def test_a_load_ends_with_the_last_who_gives_it_up(hive: HiveFolder, model_path: Path) -> None:
    hive.register("smollm2:135m", model_path)
    _, worker = hive.ask("POST", "/v1/workers", {"model": "smollm2:135m", "options": {"ctx": 512}})
    os.kill(worker["pid"], signal.SIGSTOP)  # a load that takes its time
    target = f"/v1/workers/{worker['id']}"

    def give_up(follower: str) -> str:
        stop = {"drain": False, "patience_s": 0.2, "follower": follower}
        return str(hive.ask("DELETE", target, stop)[1]["state"])

    with streaming(hive, "GET", f"{target}/events?follower=two") as two:
        with streaming(hive, "GET", f"{target}/events?follower=one") as one:
            next(events(one))
            next(events(two))
            assert give_up("one") in ("starting", "loading")
        assert give_up("two") == "stopping"
        *_, (_, last) = events(two)
    assert last["state"] == "stopping"
    assert hive.ask("GET", "/v1/workers") == (200, {"workers": []})


@pytest.mark.model
def test_why_a_real_worker_could_not_load_reaches_who_waits(hive: HiveFolder, tiny_gguf: Path) -> None:
    hive.register("tiny", tiny_gguf)
    _, worker = hive.ask("POST", "/v1/workers", {"model": "tiny", "options": {"backend": "cpu"}})
    with streaming(hive, "GET", f"/v1/workers/{worker['id']}/events") as response:
        *_, (_, last) = events(response)
    assert (last["state"], last["error"]["code"]) == ("failed", "MODEL_INVALID")
    assert hive.ask("GET", "/v1/workers")[1]["workers"][0]["state"] == "failed"
    assert hive.ask("GET", "/v1/health")[1]["workers"] == 0


def test_what_a_model_needs_is_told_where_llama_cpp_cannot_load_it(hive: HiveFolder, tiny_gguf: Path) -> None:
    hive.register("m", tiny_gguf)
    status, needs = hive.ask("POST", "/v1/models/needs", {"model": "m"})
    assert (status, needs["measured"], needs["memory"], needs["info"]["model"]) == (200, False, "ram", "m")
    assert [(point["ctx"], point["slots"]) for point in needs["points"]] == [(2048, slots) for slots in (1, 2, 4, 8)]
    assert [(point["ctx"], point["slots"]) for point in needs["largest"]] == [(2048, slots) for slots in (1, 2, 4, 8)]
    sizes = [point["needed_mb"] for point in needs["points"]]
    assert sizes == sorted(sizes)
    _, some = hive.ask("POST", "/v1/models/needs", {"model": "m", "ctx": [512, 4096], "slots": [3]})
    assert [(point["ctx"], point["slots"]) for point in some["points"]] == [(512, 3), (4096, 3)]
    status, answer = hive.ask("POST", "/v1/models/needs", {"model": "m", "slots": list(range(1, 200))})
    assert (status, answer["error"]["code"]) == (400, "USAGE")


@pytest.mark.model
def test_what_a_model_needs_is_told_by_llama_cpp(hive: HiveFolder, model_path: Path) -> None:
    hive.register("m", model_path)
    _, needs = hive.ask("POST", "/v1/models/needs", {"model": "m", "options": {"kv_type": "q4_0"}, "slots": [1, 2]})
    assert needs["measured"]
    assert sorted({point["ctx"] for point in needs["points"]}) == [2048, 4096, 8192]
    assert [point["ctx"] for point in needs["largest"]] == [8192, 8192]
    by_point = {(point["ctx"], point["slots"]): point["needed_mb"] for point in needs["points"]}
    growth = by_point[8192, 1] - by_point[4096, 1]
    assert abs(growth - (by_point[4096, 1] - by_point[2048, 1]) * 2) <= 4, "in a straight line, but for rounding"
    assert by_point[4096, 2] > by_point[4096, 1]


@pytest.mark.model
def test_a_real_worker_with_an_adapter(hive: HiveFolder, tmp_path: Path) -> None:
    hive.register("m", tiny_models.write(tmp_path / "m.gguf", "llama"))
    adapter = hive.register("a", tiny_adapters.write(tmp_path / "a.gguf", 1))
    assert adapter["meta"]["adapter"]
    options = {"ctx": 512, "slots": 1}
    _, plain = hive.ask("POST", "/v1/workers", {"model": "m", "options": options})
    spawn = {"model": "m", "options": {**options, "lora": ["a:0.5"]}}
    _, worker = hive.ask("POST", "/v1/workers", spawn)
    assert worker["id"] != plain["id"]
    assert hive.ask("POST", "/v1/workers", spawn)[1]["id"] == worker["id"]
    assert hive.ask("POST", "/v1/workers", {"model": "m", "options": options})[1]["id"] == plain["id"]
    with streaming(hive, "GET", f"/v1/workers/{worker['id']}/events") as response:
        assert [info["state"] for _, info in events(response)][-1] == "idle"  # confined, it could read the adapter
    status, refused = hive.ask("DELETE", "/v1/models?model=a")
    assert (status, refused["error"]["code"]) == (409, "IN_USE")
