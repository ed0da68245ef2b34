"""What a hive and a worker say, valid and complete, for tests that then spoil it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rbee_remote.protocol import (
    BenchProgress,
    BenchResult,
    BenchTest,
    Done,
    DownloadProgress,
    Fit,
    GpuLoad,
    HiveInfo,
    HiveNews,
    Lease,
    ModelInfo,
    ModelMeta,
    ModelNeeds,
    NeedPoint,
    NodeLoad,
    SlotMemory,
    Started,
    TokenEvent,
    Usage,
    Work,
    WorkerInfo,
    WorkerLoad,
    WorkerNews,
    WorkerOptions,
    WorkerState,
    WorkerStatus,
    WorkerTimings,
    encode,
)
from rbee_remote.protocol.elsewhere import FoundElsewhere

HIVE = HiveInfo(1, "0.1.0", "d" * 16, "e" * 16, 12, 34, "boot", 1.5e9, "/h", "/run/rbee/hive.sock", 1, draining=False)
META = ModelMeta("llama", 30, 2048, 576, 49152, 3, 64, 64, "Q4_1", 134_515_008)
MODEL = ModelInfo(
    "smollm2:135m", "/h/models/a.gguf", 98_362_432, "b" * 64, owned=True, source="x", added_at=1.0, meta=META
)
WORKER = WorkerInfo(
    id="a" * 16,
    model="smollm2:135m",
    state=WorkerState.IDLE,
    backend="cpu",
    device="cpu",
    socket="/run/rbee/worker.sock",
    pid=12,
    start_ticks=34,
    boot_id="boot",
    ctx=4096,
    slots=4,
    slots_free=4,
    keep_alive_s=300.0,
    created_at=1.5e9,
    progress=1.0,
    rss_mb=200,
    idle_s=3.0,
    log="/h/log/worker.log",
    error={"code": "WORKER_CRASHED", "message": "m", "hint": "h", "details": {"k": [1, "v"]}},
    options=WorkerOptions(ctx=4096, slots=4, devices=("CUDA0",), tensor_split=(1.0,)),
    leases=(Lease("k", 1.0),),
)
FIT = Fit("ram", 300, 8000, 100, 150, 50, "cpu", "cpu", 4096, 4, measured=True)
STATUS = WorkerStatus("a" * 16, "smollm2:135m", WorkerState.IDLE, 1.0, 4096, 4, 4, 0, 3.0, 300.0, "cpu")
NEEDS = ModelNeeds(MODEL, "ram", "cpu", "cpu", 8000, (NeedPoint(4096, 1, 200),), (NeedPoint(0, 4, 0),))
STARTED = Started(prompt_tokens=5, max_tokens=20, seed=1)
TOKENS = [TokenEvent("Pa", 1), TokenEvent("ris", 2)]
DONE = Done("stop", Usage(5, 2), WorkerTimings(0.0, 0.1, 0.2))

LOAD = NodeLoad(
    at=12.5,
    cores=4,
    cpu=0.25,
    ram_total_mb=16_000,
    ram_used_mb=4_000,
    gpus=(GpuLoad("CUDA0", "NVIDIA A100", 80_000, 2_000, 0.5), GpuLoad("ROCm0", "AMD GPU", 0, 0)),
    workers=(WorkerLoad("a" * 16, 1, 2, 200, Work(20, 5, 1, 0.1)),),
)
NEWS = WorkerNews(STATUS, (SlotMemory(0, ("0" * 16, "", "f" * 16)), SlotMemory(3)), 1.5)

#: By name: what a request is answered with, or the (event, data) pairs of a stream.
MESSAGES: dict[str, Any] = {
    "hive": encode(HIVE),
    "worker": encode(WORKER),
    "workers": {"workers": [encode(WORKER)]},
    "fit": encode(FIT),
    "model": encode(MODEL),
    "models": {"models": [encode(MODEL)]},
    "elsewhere": {"models": [encode(FoundElsewhere("ollama:m:1b", "/m", 5, "Ollama", "a" * 64, "o/r", "m.gguf"))]},
    "needs": encode(NEEDS),
    "status": encode(STATUS),
    "worker news": [("news", encode(NEWS)), ("news", encode(WorkerNews(STATUS)))],
    "hive news": [("news", encode(HiveNews((WORKER,), (MODEL,)))), ("news", encode(HiveNews(())))],
    "hive watched": [
        ("news", encode(HiveNews((WORKER,), (MODEL,)))),
        ("load", encode(LOAD)),
        ("load", encode(NodeLoad(13.5, 4, None, 1, 1))),
    ],
    "states": [("state", encode(WORKER))],
    "pull": [("progress", encode(DownloadProgress(1, 2, 1, "r"))), ("done", encode(MODEL))],
    "answer": [("started", encode(STARTED)), *(("token", encode(token)) for token in TOKENS), ("done", encode(DONE))],
    "bench": [
        ("progress", encode(BenchProgress("pp512", 1, 5))),
        ("done", encode(BenchResult((BenchTest("pp512", 512, (1.0,)),), 2))),
    ],
}


#: What a probe says of a node that has all it needs; `{payload}` and `{runtime}` are to be filled in.
PROBE = """system=Linux
machine=x86_64
user=bee
uid=1000
user_home=/home/bee
shell=/bin/bash
libc=glibc 2.36
os=Debian GNU/Linux 12
cores=4
ram_total_kb=8000000
ram_available_kb=6000000
boot_id=00000000-0000-0000-0000-000000000000
home=/h
home_writable=yes
disk_free_kb=90000000
home_mount=rw,relatime
payload={payload}.zip
runtime={runtime}
uv=uv-0.0.1
run_base=/run/user/1000
hive_socket=/run/user/1000/rbee/{run_name}/hive.sock
python=3.11.2 1 /usr/bin/python3
compiler=/usr/bin/c++
nvidia=NVIDIA A100, 81920, 80000, 550.54.15
cuda_version=12.4
end=yes
"""


def answer(message: object) -> bytes:
    """An HTTP answer: `message` as JSON, a list of pairs as a stream of events, bytes as they are."""
    if isinstance(message, list):
        return chunked(events(message))
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def chunked(body: bytes) -> bytes:
    """An HTTP answer whose length is not told ahead."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def events(pairs: Sequence[tuple[str, object]]) -> bytes:
    """The body of a stream, its events numbered from 1."""
    said = (
        f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n" for number, (name, data) in enumerate(pairs, 1)
    )
    return "".join(said).encode()


Path = tuple[str | int, ...]


def leaves(message: Any, at: Path = ()) -> list[Path]:
    """Where a message has a value: at each key and place of it, or of what the events of a stream carry."""
    if isinstance(message, list) and not at:
        return [path for place, (_, data) in enumerate(message) for path in leaves(data, (place, 1))]
    found: list[Path] = []
    for key, value in message.items() if isinstance(message, dict) else enumerate(message):
        found.append((*at, key))
        if isinstance(value, (dict, list, tuple)):
            found += leaves(value, (*at, key))
    return found


def replaced(message: Any, path: Path, value: object) -> Any:
    """A copy of `message` with another value at `path`."""
    whole = inner = json.loads(json.dumps(message))
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole
