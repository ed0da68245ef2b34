"""The parts around the gateway's app: nodes whose workers are scripted, a dispatcher, a gate, names, a recorder; and a
client that speaks ASGI, for tests that need no socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from rbee.base.errors import NodeError, RefusedError
from rbee.gateway.base.interfaces import Client, Ended, WorkerHttp
from rbee.gateway.base.views import NodeState, NodeView, Target, Waiting, Wanted, WorkerKey, WorkerView
from rbee.gateway.requests.parts import AppSettings, Parts
from rbee.gateway.routing.names import Resolved
from rbee.inventory.aliases import ModelAlias
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import (
    NO_CHOICE,
    RESUME_FIELD,
    TRACK_COMMENT,
    ErrorCode,
    ModelInfo,
    Resume,
    Tracked,
    TrackedUsage,
    WorkerState,
    decode,
    encode,
)
from tests.patience import PATIENCE_S

STATE = {"seed": 7}
SHA = "5" * 64
MODEL = "smollm2:135m"
USAGE = TrackedUsage(prompt=11, cached=3, completion=5)


@dataclass(frozen=True)
class Step:
    """What some tokens gave: lines of a choice."""

    choice: int
    tokens: tuple[int, ...]
    lines: tuple[str, ...]
    usage: TrackedUsage | None = None


def chat_script(words: Sequence[str], choices: int = 1) -> list[Step]:
    """A chat's answer in OpenAI's form: an opening, a token for each word of which some give no line and some two, and
    an end that is no choice's."""
    steps = [Step(choice, (), (_delta(choice, {"role": "assistant"}),)) for choice in range(choices)]
    for at, word in enumerate(words):
        for choice in range(choices):
            lines = [_delta(choice, {"content": f"{word}{at}.{n}"}) for n in range(at % 3)]
            steps.append(Step(choice, (100 * choice + at,), tuple(lines)))
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 11}})
    return [*steps, Step(NO_CHOICE, (), (usage, "[DONE]"), USAGE)]


def _delta(choice: int, delta: dict[str, str]) -> str:
    return json.dumps({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
                       "choices": [{"index": choice, "delta": delta}]})  # fmt: skip


def rendered(steps: Sequence[Step], resume: Resume | None = None, *, tracked: bool = True) -> bytes:
    """The stream of these steps, or what is missing of it, as a worker sends it."""
    done = {int(name): sent for name, sent in (resume.choices if resume else {}).items()}
    tokens = {choice: list(sent.tokens) for choice, sent in done.items()}
    skip = {choice: sent.lines for choice, sent in done.items()}
    out, is_first = [], True
    for step in steps:
        told = tokens.get(step.choice, [])
        is_known = bool(step.tokens) and told[: len(step.tokens)] == list(step.tokens)
        del told[: len(step.tokens)]
        leave = min(skip.get(step.choice, 0), len(step.lines))
        skip[step.choice] = skip.get(step.choice, 0) - leave
        lines = step.lines[leave:]
        if (is_known or not step.tokens) and not lines and step.lines:
            continue
        tokens_told = () if is_known else step.tokens
        comment = Tracked(step.choice, tokens_told, len(lines), STATE if is_first else None, step.usage)
        is_first = False
        if tracked:
            out.append(f"{TRACK_COMMENT}{json.dumps(encode(comment))}\n\n")
        out += [f"data: {line}\n\n" for line in lines]
    return "".join(out).encode()


def plain(steps: Sequence[Step]) -> bytes:
    """What a client is to have of it."""
    return rendered(steps, tracked=False)


@dataclass
class Reply:
    """One answer of a worker. cuts: sizes of the pieces, the last one for all that follow. breaks_at: the byte at which
    it ends too early, with `error`. gate: set when the next piece may come, for each piece from the second on."""

    body: bytes | Callable[[dict[str, Any]], bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    cuts: Sequence[int] = (65536,)
    breaks_at: int | None = None
    error: Exception = field(default_factory=lambda: HungUpError("POST"))
    before: Exception | None = None
    holds: asyncio.Event | None = None


class ScriptedWorker:
    """replies: for one request after another, the last one for all that follow. requests: (path, headers, body)."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.open = 0

    @contextlib.asynccontextmanager
    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[ScriptedResponse]:
        assert method == "POST"
        value = json.loads(body)
        self.requests.append((path, dict(headers), value))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply.before is not None:
            raise reply.before
        self.open += 1
        try:
            content = reply.body(value) if callable(reply.body) else reply.body
            yield ScriptedResponse(reply, content)
        finally:
            self.open -= 1


class ScriptedResponse:
    def __init__(self, reply: Reply, content: bytes) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._content = content

    async def chunks(self) -> AsyncIterator[bytes]:
        reply, content = self._reply, self._content
        end = len(content) if reply.breaks_at is None else min(reply.breaks_at, len(content))
        sizes, at = list(reply.cuts), 0
        while at < end:
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            await asyncio.sleep(0)  # as a socket would
            yield content[at : min(at + size, end)]
            at += size
            if reply.holds is not None:
                await reply.holds.wait()
        if reply.breaks_at is not None and reply.breaks_at <= len(content):
            raise reply.error


def resuming(steps: Sequence[Step]) -> Callable[[dict[str, Any]], bytes]:
    """Answers a request with the steps, and one that goes on with what is missing of them."""

    def body(request: dict[str, Any]) -> bytes:
        resume = decode(Resume, request[RESUME_FIELD]) if RESUME_FIELD in request else None
        assert resume is None or resume.state == STATE
        return rendered(steps, resume)

    return body


class FakeFleet:
    """workers: by name of their nodes, one each. gone: names of nodes whose worker has ended."""

    def __init__(self, **workers: WorkerHttp) -> None:
        self.workers = workers
        self.sha256 = SHA
        self.failures: list[WorkerKey] = []
        self._states: dict[str, NodeState] = {}
        self.gone: set[str] = set()
        self._doubtful: set[str] = set()
        self.models: dict[str, ModelInfo] = {}  # of each node's catalog
        self._version = 1
        self._changed = asyncio.Event()

    def set_state(self, name: str, state: NodeState) -> None:
        """A node that is up again has been heard."""
        self._states[name] = state
        if state is NodeState.UP:
            self._doubtful.discard(name)
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        return tuple(
            NodeView(
                name,
                self._states.get(name, NodeState.UP),
                models=self.models,
                workers=() if name in self._doubtful | self.gone else (self.view(name),),
                in_doubt=frozenset({self.view(name).key} if name in self._doubtful else ()),
            )
            for name in self.workers
        )

    @property
    def version(self) -> int:
        return self._version

    def view(self, name: str) -> WorkerView:
        return WorkerView(WorkerKey(name, "w"), MODEL, WorkerState.IDLE, 2048, 2, 2, self.sha256)

    async def wait_changed(self, seen: int) -> None:
        while self._version == seen:
            await self._changed.wait()

    async def start_worker(self, node: str, target: Target) -> WorkerKey:
        raise NotImplementedError

    def worker(self, key: WorkerKey) -> WorkerHttp:
        return self.workers[key.node]

    def begun(self, key: WorkerKey) -> None:
        raise NotImplementedError

    def ended(self, key: WorkerKey) -> None:
        raise NotImplementedError

    def failed(self, key: WorkerKey) -> None:
        self.failures.append(key)
        self._doubtful.add(key.node)


class FakeDispatcher:
    """Gives the first worker that will do, of no node that is down since it failed. holds: until it is set,
    requests wait. open: tickets that are not closed."""

    def __init__(self, fleet: FakeFleet) -> None:
        self.fleet = fleet
        self.holds: asyncio.Event | None = None
        self.waiting = Waiting()
        self.wanted: list[Wanted] = []
        self.open = 0

    def enter(self, wanted: Wanted) -> FakeTicket:
        self.wanted.append(wanted)
        self.open += 1
        return FakeTicket(self, wanted)


class FakeTicket:
    def __init__(self, dispatcher: FakeDispatcher, wanted: Wanted) -> None:
        self._dispatcher = dispatcher
        self._wanted = wanted
        self._is_open = True

    @property
    def waiting(self) -> Waiting:
        return self._dispatcher.waiting

    async def worker(self) -> WorkerView:
        if self._dispatcher.holds is not None:
            await self._dispatcher.holds.wait()
        fleet = self._dispatcher.fleet
        for name in (node.name for node in fleet.nodes if not (node.in_doubt and node.state is NodeState.DOWN)):
            view = fleet.view(name)
            if view.key not in self._wanted.avoid and self._wanted.sha256 in ("", view.sha256):
                return view
        raise NodeError(ErrorCode.WORKER_GONE, "no node has a worker for it", details={"retry_after_s": 7})

    def close(self) -> None:
        self._dispatcher.open -= self._is_open
        self._is_open = False


class FakeGate:
    """keys: those that are let in; empty for everybody. limit: requests of all clients at once."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.limit = 1000
        self.open_requests = 0

    def admit(self, headers: Mapping[str, str], address: str) -> Client:
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.keys and key not in self.keys:
            raise RefusedError(ErrorCode.INVALID_API_KEY, "no such key", hint="`rbee keys add NAME` makes one")
        return Client(key=key if self.keys else "", address=address, priority=3)

    @contextlib.contextmanager
    def open(self, client: Client) -> Iterator[None]:
        if self.open_requests >= self.limit:
            raise NodeError(ErrorCode.RATE_LIMITED, "as many requests as it may", details={"retry_after_s": 2.5})
        self.open_requests += 1
        try:
            yield
        finally:
            self.open_requests -= 1


class FakeRecorder:
    def __init__(self) -> None:
        self.requests: list[Ended] = []

    def ended(self, request: Ended) -> None:
        self.requests.append(request)


class FakeNames:
    def __init__(self, *aliases: ModelAlias) -> None:
        self.aliases = {alias.name: alias for alias in aliases}

    def resolve(self, model: str, client: Client) -> Resolved:
        if model not in ("", MODEL, *self.aliases):
            raise NodeError(ErrorCode.MODEL_NOT_FOUND, f"there is no model {model!r}", hint=f"did you mean {MODEL}?")
        alias = self.aliases.get(model)
        target = Target(MODEL, ("a", "b"), alias.load) if alias else Target(MODEL, ("a", "b"))
        return Resolved(model, model, (target,), alias)

    def listing(self, client: Client) -> list[dict[str, Any]]:
        return [{"id": name, "object": "model"} for name in (MODEL, *self.aliases)]


@dataclass
class Setting:
    """Everything around an app."""

    fleet: FakeFleet
    dispatcher: FakeDispatcher
    gate: FakeGate
    recorder: FakeRecorder
    parts: Parts


def setting(
    *aliases: ModelAlias, keys: Sequence[str] = (), settings: AppSettings | None = None, **workers: Any
) -> Setting:
    fleet, gate, recorder = FakeFleet(**workers), FakeGate(*keys), FakeRecorder()
    dispatcher = FakeDispatcher(fleet)
    parts = Parts(fleet, dispatcher, gate, recorder, FakeNames(*aliases), settings or AppSettings())
    return Setting(fleet, dispatcher, gate, recorder, parts)


@dataclass
class Heard:
    """What a client of an ASGI app heard. is_complete: the answer had HTTP's end."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: ASGIApp,
    body: Any,
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    leaves: asyncio.Event | None = None,
    heard: Heard | None = None,
) -> Heard:
    """body: JSON, or bytes. leaves: set when the client goes away. heard: filled while it goes on."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    target, _, query = path.partition("?")
    scope = {
        "type": "http", "method": method, "path": target, "raw_path": target.encode(), "query_string": query.encode(),
        "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("gateway", 80), "client": ("127.0.0.9", 1),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
    }  # fmt: skip
    heard = heard or Heard()
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    over = leaves or asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            heard.status = message["status"]
            heard.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            heard.body += message.get("body", b"")
            heard.is_complete = not message.get("more_body", False)
            if heard.is_complete:
                over.set()  # as uvicorn has it

    await app(scope, receive, send)
    return heard


def chat(**values: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": True, **values}


class SocketWorker:
    """A real worker behind its socket. breaks_at: bytes of an answer's body after which its connection breaks, for one
    request after another; None, and none left, for whole ones.

    Each request has a connection of its own: a worker ends one that is idle for some seconds, which httpx finds out
    when it has sent the next request over it."""

    def __init__(self, socket: Path, *breaks_at: int | None) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0))
        self._client = httpx.AsyncClient(transport=transport, timeout=PATIENCE_S)
        self._breaks_at = list(breaks_at)
        self.requests = 0

    @contextlib.asynccontextmanager
    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[SocketResponse]:
        self.requests += 1
        breaks_at = self._breaks_at.pop(0) if self._breaks_at else None
        address = f"http://worker{path}"
        async with self._client.stream(method, address, headers=dict(headers), content=body) as response:
            yield SocketResponse(response, breaks_at)

    async def aclose(self) -> None:
        await self._client.aclose()


class SocketResponse:
    def __init__(self, response: httpx.Response, breaks_at: int | None) -> None:
        self.status = response.status_code
        self.headers = dict(response.headers)
        self._response = response
        self._breaks_at = breaks_at

    async def chunks(self) -> AsyncIterator[bytes]:
        left = self._breaks_at
        async for piece in self._response.aiter_raw():
            if left is not None and left <= len(piece):
                yield piece[:left]
                raise SilenceError("POST", 10)
            left = None if left is None else left - len(piece)
            yield piece
