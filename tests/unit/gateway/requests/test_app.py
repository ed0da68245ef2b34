"""The app without sockets: who is let in, what is passed on, what a client hears that waits, errors in its form."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from rbee.base.errors import NodeError
from rbee.gateway.base.interfaces import Ended
from rbee.gateway.base.views import NodeState, Waiting, WorkerKey
from rbee.gateway.requests.app import make_app
from rbee.gateway.requests.asked import parsed
from rbee.gateway.requests.parts import AppSettings
from rbee.inventory.aliases import ModelAlias
from rbee_remote.protocol import NO_CHOICE, ErrorCode, LoadOptions, ModelInfo, ModelMeta
from tests.doubles.gateway import (
    MODEL,
    USAGE,
    FakeFleet,
    Heard,
    Reply,
    ScriptedWorker,
    Step,
    ask,
    chat,
    chat_script,
    plain,
    resuming,
    setting,
)
from tests.patience import PATIENCE_S

STEPS = chat_script(["one ", "two ", "three "])
JSON = {"content-type": "application/json"}
OK = Reply(b'{"ok": true}', headers=JSON)
PATHS = ["/v1/chat/completions", "/v1/messages"]


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_request_goes_to_a_worker_as_it_came() -> None:
    worker = ScriptedWorker(OK)
    world = setting(a=worker, keys=["k1"])
    sent = {
        "Authorization": "Bearer k1", "Cookie": "c", "X-Rbee-Keeper": "k", "Connection": "close", "Accept": "a/b",
        "Anthropic-Version": "2023-06-01", "X-Request-Id": "my-id", "X-Forwarded-For": "9.9.9.9",
        "Traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    }  # fmt: skip
    heard = await ask(
        make_app(world.parts), b'{"model":"smollm2:135m",  "x": 1}', "/v1/any/thing?beta=true&x=%20", sent
    )
    assert (heard.status, heard.body, heard.headers["x-request-id"]) == (200, b'{"ok": true}', "my-id")
    ((path, headers, body),) = worker.requests
    assert (path, body) == ("/v1/any/thing?beta=true&x=%20", {"model": MODEL, "x": 1})
    assert headers == {
        "accept": "a/b", "anthropic-version": "2023-06-01", "traceparent": sent["Traceparent"],
        "content-type": "application/json", "X-Rbee-Request": "my-id", "X-Rbee-Track": "1",
    }  # fmt: skip
    (ended,) = world.recorder.requests
    assert ended.seconds >= (ended.first_s or 9) >= ended.queue_s >= 0
    assert ended == Ended(
        "my-id", ended.client, "POST", "/v1/any/thing", 200, MODEL, MODEL, WorkerKey("a", "w"), None, "", 0,
        ended.seconds, ended.first_s, ended.queue_s, sent["Traceparent"],
    )  # fmt: skip
    assert (ended.client.key, ended.client.address) == ("k1", "127.0.0.9")
    (wanted,) = world.dispatcher.wanted
    assert wanted.priority == 3
    assert 500 < (wanted.deadline or 0) - time.monotonic() < 600


@pytest.mark.parametrize("said", ["", "x" * 65, "a b", "a/b", "é"])
async def test_a_request_id_that_is_no_word_is_replaced(said: str) -> None:
    world = setting(a=ScriptedWorker(OK))
    heard = await ask(make_app(world.parts), chat(stream=False), headers={"X-Request-Id": said, "Traceparent": said})
    assert len(heard.headers["x-request-id"]) == 32
    assert world.recorder.requests[0].request_id == heard.headers["x-request-id"]
    assert world.recorder.requests[0].traceparent == ""


async def test_an_alias_adds_its_system_prompt_and_sampling() -> None:
    worker = ScriptedWorker(OK)
    world = setting(ModelAlias("brief", MODEL, system="Be brief.", sampling={"temperature": 0.1}), a=worker)
    await ask(make_app(world.parts), chat(model="brief", stream=False))
    body = worker.requests[0][2]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["temperature"] == 0.1
    assert (world.recorder.requests[0].asked, world.recorder.requests[0].model) == ("brief", MODEL)


WRONG = [
    (b"", 400, "the body is empty; expected a JSON object"),
    (b"\xef\xbb\xbf", 400, "the body is empty; expected a JSON object"),
    (b'{"model": "a",\n "x" 1}', 400, "not JSON: line 2, column 6: Expecting ':' delimiter"),
    (b"[]", 400, "a list"),
    (b'{"model": 3}', 400, "a number"),
    (b'{"model": []}', 400, "a list"),
    (b'{"model": false}', 400, "true or false"),
    (b'{"model": "%s"}' % (b"x" * 600), 400, "600 characters"),
    (b'{"model": "a", "model": "b"}', 400, "twice"),
    (b'{"model": "a", "x": ' + b"[" * 100 + b"]" * 100 + b"}", 400, "nested"),
    (b'{"model": "a", "x": ' + b"[" * 200_000, 400, "not JSON"),
    (b'{"model": "a", "x": NaN}', 400, "not a number"),
    (b'{"model": "a", "x": "\\ud800"}', 400, "not JSON"),
    (b'{\xff"model": "a"}', 400, "not JSON: byte 1 is not UTF-8"),
    (b'{"model": "a", "stream": 2}', 400, "stream"),
    (b'{"model": "a", "stream": "yes"}', 400, "stream: expected true or false, got a text of 3"),
    (b'{"model": "a", "stream": []}', 400, "stream"),
    (b'{"model": "a", "rbee_resume": {}}', 400, "rbee_resume"),
    (b'{"model": "a"}', 404, f"did you mean {MODEL}?"),
    (b"x" * 2000, 413, "larger than"),
]


@pytest.mark.parametrize(
    ("said", "streams"), [("null", False), ("true", True), ("1", True), ('"True"', True), ("0", False), ("1.0", True)]
)
def test_a_stream_is_asked_for_in_the_words_that_workers_take(said: str, streams: bool) -> None:
    assert parsed(b'{"stream": %b}' % said.encode()).streams is streams


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "status", "said"), WRONG)
async def test_a_body_that_is_wrong(body: bytes, status: int, said: str, path: str) -> None:
    most = max(len(body), 1500) if status != 413 else 1500
    worker = ScriptedWorker(OK)
    world = setting(a=worker, settings=AppSettings(most_body=most))
    heard = await ask(make_app(world.parts), body, path)
    assert heard.status == status
    assert said in check_form(heard, path)
    assert worker.requests == []
    assert world.gate.open_requests == 0
    (ended,) = world.recorder.requests
    assert (ended.status, bool(ended.finish)) == (status, True)


def check_form(heard: Heard, path: str) -> str:
    """The message of an error, whose form must be that of the path's API."""
    assert heard.headers["content-type"] == "application/json"
    error = heard.json["error"]
    assert "`rbee" not in error["message"]
    if path == "/v1/messages":
        assert heard.json == {"type": "error", "error": {"type": error["type"], "message": error["message"]}}
    else:
        assert error.keys() == {"message", "type", "param", "code"}
    return str(error["message"])


@pytest.mark.parametrize("path", PATHS)
async def test_keys_and_bounds_of_the_gate(path: str) -> None:
    world = setting(a=ScriptedWorker(OK), keys=["k1"])
    app = make_app(world.parts)
    heard = await ask(app, chat(), path, {"Authorization": "Bearer k2"})
    assert (heard.status, heard.headers["www-authenticate"]) == (401, "Bearer")
    assert check_form(heard, path) == "no such key"
    world.gate.limit = 0
    heard = await ask(app, chat(), path, {"X-Api-Key": "k1"})
    assert (heard.status, heard.headers["retry-after"]) == (429, "3")
    assert check_form(heard, path) == "as many requests as it may"
    kinds = {"/v1/messages": ["authentication_error", "rate_limit_error"]}
    codes = {"/v1/chat/completions": ["INVALID_API_KEY", "RATE_LIMITED"]}
    assert [each.finish for each in world.recorder.requests] == codes["/v1/chat/completions"]
    assert heard.json["error"]["type"] == kinds.get(path, ["", "invalid_request_error"])[1]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/admin/shutdown"), ("PUT", "/v1/models"), ("DELETE", "/v1/x"), ("POST", "/health"), ("POST", "/\n"),
     ("GET", "/v1/x\n/"), ("POST", "*"), ("POST", "http://localhost/v1/chat/completions")],
)  # fmt: skip
async def test_without_a_key_no_path_is_told_from_another(method: str, path: str) -> None:
    world = setting(a=ScriptedWorker(OK), keys=["k1"])
    app = make_app(world.parts)
    app.draining = True
    assert (await ask(app, chat(), path, method=method)).status == 401
    assert world.recorder.requests[0].finish == "INVALID_API_KEY"  # which no log has a line for


@pytest.mark.parametrize("path", ["/v1/\n", "/v1/completions\x1b[31m", "*", "http://localhost/v1/admin/x", "x"])
async def test_what_is_no_path_is_not_passed_on(path: str) -> None:
    worker = ScriptedWorker(OK)
    world = setting(a=worker)
    heard = await ask(make_app(world.parts), chat(), path)
    assert (heard.status, worker.requests) == (404, [])
    assert heard.json["error"]["message"] == f"{path!r} is no path"
    assert world.recorder.requests[0].client.address


async def test_a_worker_that_redirects_is_well() -> None:
    world = setting(a=ScriptedWorker(Reply(b"", 307, {"location": "http://elsewhere/"}), OK))
    app = make_app(world.parts)
    heard = await ask(app, chat(), "/v1/chat/completions/")
    assert (heard.status, heard.json["error"]["message"]) == (404, "no worker serves /v1/chat/completions/")
    assert "location" not in heard.headers
    assert (await ask(app, chat(stream=False))).status == 200


async def test_a_byte_order_mark_stays_at_the_gateway() -> None:
    worker = ScriptedWorker(OK)
    heard = await ask(make_app(setting(a=worker).parts), b"\xef\xbb\xbf" + json.dumps(chat(stream=False)).encode())
    assert heard.status == 200
    assert worker.requests[0][2] == chat(stream=False)


async def test_all_bodies_together_have_a_bound() -> None:
    hold = asyncio.Event()
    worker = ScriptedWorker(Reply(resuming(STEPS), cuts=[200], holds=hold))
    world = setting(a=worker, settings=AppSettings(most_bodies=1500))
    app, body = make_app(world.parts), chat(user="x" * 700)
    running = asyncio.create_task(ask(app, body))
    await until(lambda: worker.open)
    heard = await ask(app, body)
    assert (heard.status, heard.headers["retry-after"], heard.headers["connection"]) == (503, "5", "close")
    assert "the bodies of the requests that are open" in heard.json["error"]["message"]
    assert (await ask(app, {"model": "unknown"})).status == 404  # there is room for a small one
    hold.set()
    assert (await running).is_complete
    assert world.parts.bodies.held == 0
    assert (await ask(app, body)).status == 200


async def test_no_worker_can_be_had() -> None:
    world = setting()
    heard = await ask(make_app(world.parts), chat())
    assert (heard.status, heard.headers["retry-after"]) == (503, "7")
    assert heard.json["error"]["code"] == "WORKER_GONE"


@pytest.mark.parametrize(
    "path",
    ["/v1/admin/shutdown", "/admin/lease", "/v1//admin/x", "/v1/inference", "/v1/requests/1/events", "/v1/news",
     "/v1/loading/progress", "/v1/ready", "//v1/inference/"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_what_is_rbees_own_on_a_worker_is_not_passed_on(path: str, method: str) -> None:
    worker = ScriptedWorker(OK)
    world = setting(a=worker)
    assert (await ask(make_app(world.parts), chat(), path, method=method)).status == 404
    assert worker.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/chat/completions", 405, "POST"),
        ("GET", "/favicon.ico", 404, None),
        ("GET", "/v1/responses", 405, "POST"),
        ("GET", "/v1/responses/resp_1", 404, None),
        ("DELETE", "/responses/resp_1", 404, None),
        ("POST", "/v1/responses/resp_1/cancel", 404, None),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/chat/completions", 204, "POST, OPTIONS"),
        ("OPTIONS", "/v1/models", 204, "GET, HEAD, OPTIONS"),
        ("GET", "/v1/metrics", 404, None),
        ("HEAD", "/v1/models", 200, None),
        ("HEAD", "/health", 200, None),
        ("GET", "/", 200, None),
    ],
)
async def test_methods(method: str, path: str, status: int, allow: str | None) -> None:
    heard = await ask(make_app(setting(a=ScriptedWorker(OK)).parts), b"", path, method=method)
    assert heard.status == status
    said = heard.headers.get("allow")
    assert (sorted(said.split(", ")) if said else None) == (sorted(allow.split(", ")) if allow else None)
    assert "x-request-id" in heard.headers


async def test_a_workers_own_404_comes_in_the_callers_form() -> None:
    own = {"error": {"message": "this worker does not serve that", "type": "x", "param": None, "code": None}}
    world = setting(a=ScriptedWorker(Reply(json.dumps(own).encode(), status=404, headers=JSON)))
    heard = await ask(make_app(world.parts), chat(), "/v1/messages/unknown")
    assert heard.status == 404
    assert heard.json == {"type": "error", "error": {"type": "not_found_error", "message": own["error"]["message"]}}
    rbees = NodeError(ErrorCode.USAGE, "no", hint="`rbee x`")
    told = {"error": {"code": "USAGE", "message": rbees.message, "details": {}, "hint": rbees.hint}}
    world = setting(a=ScriptedWorker(Reply(json.dumps(told).encode(), status=400, headers=JSON)))
    heard = await ask(make_app(world.parts), chat(), "/v1/unknown")
    assert check_form(heard, "/v1/unknown") == "no"


async def test_the_adapters_of_the_model_that_is_named() -> None:
    styled = ModelAlias("styled", MODEL, load=LoadOptions(lora=("/home/me/style.gguf:0.5", "hf:a/b:1")))
    world = setting(styled, keys=["k"], a=ScriptedWorker(OK))
    app, key = make_app(world.parts), {"X-Api-Key": "k"}
    heard = await ask(app, b"", "/lora-adapters?model=styled", key, method="GET")
    assert heard.json == [{"id": 0, "path": "style.gguf", "scale": 0.5}, {"id": 1, "path": "hf:a/b", "scale": 1.0}]
    for path in ("/lora-adapters", f"/v1/lora-adapters?model={MODEL}"):
        assert (await ask(app, b"", path, key, method="GET")).json == []
    heard = await ask(app, b"", "/lora-adapters?model=other", key, method="GET")
    assert (heard.status, heard.json["error"]["code"]) == (404, "model_not_found")
    assert (await ask(app, b"", "/lora-adapters", method="GET")).status == 401
    assert (await ask(app, b"[]", "/v1/lora-adapters", key)).status == 405
    assert world.dispatcher.wanted == []


async def test_the_models() -> None:
    world = setting(ModelAlias("brief", MODEL), keys=["k"])
    app, key = make_app(world.parts), {"X-Api-Key": "k"}
    for path in ("/v1/models", "/models"):
        heard = await ask(app, b"", path, key, method="GET")
        assert heard.json == {
            "object": "list",
            "data": [{"id": MODEL, "object": "model"}, {"id": "brief", "object": "model"}],
            "has_more": False,
            "first_id": MODEL,
            "last_id": "brief",
        }
    assert (await ask(app, b"", f"/v1/models/{MODEL}", key, method="GET")).json["id"] == MODEL
    heard = await ask(app, b"", "/v1/models/hf:a/b", key, method="GET")
    assert (heard.status, heard.json["error"]["code"]) == (404, "model_not_found")
    assert (await ask(app, b"", "/v1/models", method="GET")).status == 401
    assert len(world.recorder.requests) == 5


async def test_a_model_that_only_embeds_is_not_asked_to_chat() -> None:
    worker = ScriptedWorker(OK)
    world = setting(a=worker)
    meta = ModelMeta("bert", 2, 512, 32, 100, 2, 16, 16)
    world.fleet.models[MODEL] = ModelInfo(MODEL, "/m", 1, "", True, "", 0.0, meta)
    app = make_app(world.parts)
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/messages/count_tokens"):
        heard = await ask(app, chat(), path)
        assert heard.status == 400
        assert f"{MODEL} only embeds texts (/v1/embeddings)" in heard.json["error"]["message"]
    assert worker.requests == []
    assert (await ask(app, {"model": MODEL, "input": "x"}, "/v1/embeddings")).status == 200


async def test_anthropics_libraries_find_the_requests_id() -> None:
    app = make_app(setting(a=ScriptedWorker(OK)).parts)
    for path in ("/v1/messages", "/messages/batches"):
        heard = await ask(app, chat(stream=False), path)
        assert heard.headers["request-id"] == heard.headers["x-request-id"]
    assert "request-id" not in (await ask(app, chat(stream=False))).headers


async def test_what_no_worker_serves_starts_none() -> None:
    world = setting()
    app = make_app(world.parts)
    for path in ("/v1/nonsense", "/nonsense", "/v1/chat/completions/"):
        heard = await ask(app, chat(), path)
        assert (heard.status, heard.json["error"]["message"]) == (404, f"no worker serves {path}")
    assert world.dispatcher.wanted == []
    assert (await ask(app, chat(), "/chat/completions")).status == 503
    assert len(world.dispatcher.wanted) == 1


async def test_just_after_the_start_models_are_told_once_nodes_were_heard_of() -> None:
    """And a request for a model that one of them has finds it."""
    world = setting(a=ScriptedWorker(OK), settings=AppSettings(acquaint_s=PATIENCE_S))
    app, known = make_app(world.parts), world.parts.names
    known.aliases.clear()  # type: ignore[attr-defined]
    world.fleet.set_state("a", NodeState.CONNECTING)
    asked = [
        asyncio.create_task(ask(app, b"", "/v1/models", method="GET")),
        asyncio.create_task(ask(app, {"model": "brief"})),
    ]
    await until(lambda: world.gate.open_requests)
    known.aliases["brief"] = ModelAlias("brief", MODEL)  # type: ignore[attr-defined]
    assert not any(each.done() for each in asked)
    world.fleet.set_state("a", NodeState.UP)
    listed, answered = await asyncio.gather(*asked)
    assert [each["id"] for each in listed.json["data"]] == [MODEL, "brief"]
    assert answered.status == 200
    assert (await ask(app, {"model": "unknown"})).status == 404


async def test_a_node_that_is_not_heard_of_delays_the_list_for_a_moment() -> None:
    world = setting(a=ScriptedWorker(OK), settings=AppSettings(acquaint_s=0.01))
    world.fleet.set_state("a", NodeState.CONNECTING)
    assert (await ask(make_app(world.parts), b"", "/v1/models", method="GET")).status == 200
    assert (await ask(make_app(world.parts), {"model": "unknown"})).status == 404


async def test_health_and_metrics() -> None:
    world = setting(keys=["k"])
    app = make_app(world.parts)
    assert (await ask(app, b"", "/v1/health", method="GET")).json == {"status": "ok"}
    assert (await ask(app, b"", "/metrics", method="GET")).status == 401
    assert (await ask(app, b"", "/metrics", {"X-Api-Key": "k"}, method="GET")).status == 404


async def test_draining() -> None:
    hold = asyncio.Event()
    worker = ScriptedWorker(Reply(resuming(STEPS), cuts=[200], holds=hold))
    world = setting(a=worker)
    app, heard = make_app(world.parts), Heard()
    running = asyncio.create_task(ask(app, chat(), heard=heard))
    await until(lambda: worker.open)
    app.draining = True
    refused = await ask(app, chat())
    assert (refused.status, refused.headers["connection"]) == (503, "close")
    for path in ("/health", "/v1/models", "/v1/models/a"):
        assert (await ask(app, b"", path, method="GET")).status == 503
    hold.set()
    await running
    assert (heard.body, heard.is_complete) == (plain(STEPS), True)


async def test_a_client_that_streams_hears_how_long_it_waits() -> None:
    world = setting(a=ScriptedWorker(Reply(resuming(STEPS))), settings=AppSettings(patience_s=0.0, comment_s=0.001))
    world.dispatcher.holds, world.dispatcher.waiting = asyncio.Event(), Waiting(place=3)
    heard = Heard()
    running = asyncio.create_task(ask(make_app(world.parts), chat(), heard=heard))
    await until(lambda: b": place 3 in the queue\n\n" in heard.body)
    world.dispatcher.waiting = Waiting(loading=0.42)
    await until(lambda: b": loading 42%\n\n" in heard.body)
    world.dispatcher.holds.set()
    await running
    assert heard.headers["content-type"].startswith("text/event-stream")
    events = heard.body.split(b"\n\n")
    answer = b"\n\n".join(each for each in events if not each.startswith(b": "))
    assert (answer, heard.is_complete) == (plain(STEPS), True)


@pytest.mark.parametrize("path", PATHS)
async def test_an_error_after_comments_is_an_event(path: str) -> None:
    """What a worker refuses, and what the dispatcher does."""
    refusal = Reply(b'{"error": {"message": "bad field"}}', status=400, headers=JSON)
    for nobody, said in ((False, "bad field"), (True, "no node")):
        world = setting(a=ScriptedWorker(refusal), settings=AppSettings(patience_s=0.0, comment_s=9))
        if nobody:
            world.dispatcher.fleet = FakeFleet()
        world.dispatcher.holds = asyncio.Event()
        heard = Heard()
        running = asyncio.create_task(ask(make_app(world.parts), chat(), path, heard=heard))
        await until(lambda: heard.body)  # noqa: B023 - awaited at once
        world.dispatcher.holds.set()
        await running
        event = heard.body.decode().split("\n\n")[1]
        assert event.startswith("event: error\ndata: " if path == "/v1/messages" else "data: ")
        assert said in json.loads(event.split("data: ")[1])["error"]["message"]
        assert (heard.status, heard.is_complete) == (200, False)


async def test_a_client_that_does_not_stream_hears_nothing_before_its_answer() -> None:
    world = setting(a=ScriptedWorker(OK), settings=AppSettings(patience_s=0.0, comment_s=0.0))
    world.dispatcher.holds = asyncio.Event()
    heard = Heard()
    running = asyncio.create_task(ask(make_app(world.parts), chat(stream=False), heard=heard))
    await until(lambda: world.dispatcher.open)
    for _ in range(20):
        await asyncio.sleep(0)
    assert heard.status == 0
    world.dispatcher.holds.set()
    assert (await running).body == b'{"ok": true}'


@pytest.mark.parametrize("began", [True, False])
async def test_a_request_that_is_cut_off_is_told_so(began: bool) -> None:
    world = setting(a=ScriptedWorker(OK), settings=AppSettings(patience_s=0.001 if began else 60.0))
    world.dispatcher.holds = asyncio.Event()
    heard = Heard()
    running = asyncio.create_task(ask(make_app(world.parts), chat(), heard=heard))
    await until(lambda: heard.status if began else world.dispatcher.open)
    running.cancel()
    await running
    assert b"the gateway was ended before the answer was complete" in heard.body
    assert heard.status == (200 if began else 503)
    assert heard.body.startswith(b":") == began
    assert not began or b"[DONE]" not in heard.body
    assert world.recorder.requests[0].finish == "REQUEST_CANCELED"
    assert world.dispatcher.open == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_of_the_callers_own(stream: bool) -> None:
    world = setting(a=ScriptedWorker(OK))
    world.dispatcher.holds = asyncio.Event()
    heard = await ask(make_app(world.parts), chat(stream=stream), headers={"X-Rbee-Timeout": "0.01"})
    assert (heard.status, heard.json["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    assert world.dispatcher.open == 0
    assert world.recorder.requests[0].finish == "DEADLINE_EXCEEDED"
    for wrong in ("0", "-1", "soon", "nan", "1e9", "100000"):
        heard = await ask(make_app(world.parts), chat(), headers={"X-Rbee-Timeout": wrong})
        assert heard.status == 400


async def test_a_client_that_leaves_ends_everything() -> None:
    hold = asyncio.Event()
    worker = ScriptedWorker(Reply(resuming(STEPS), cuts=[200], holds=hold))
    world = setting(a=worker)
    for where in ("queue", "worker"):
        leaves = asyncio.Event()
        world.dispatcher.holds = asyncio.Event() if where == "queue" else None
        running = asyncio.create_task(ask(make_app(world.parts), chat(), leaves=leaves))
        await until(lambda: world.dispatcher.open and (where == "queue" or worker.open))  # noqa: B023
        leaves.set()
        await running
        assert (world.dispatcher.open, worker.open, world.gate.open_requests) == (0, 0, 0)
        assert (world.recorder.requests[-1].finish, world.recorder.requests[-1].status) == ("REQUEST_CANCELED", 499)
    assert world.fleet.failures == []


async def test_a_bug_is_said_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    world = setting(a=ScriptedWorker(Reply(b"", before=ZeroDivisionError("secret"))))
    heard = await ask(make_app(world.parts), chat())
    assert heard.status == 500
    assert b"secret" not in heard.body
    assert "ZeroDivisionError" in caplog.text
    assert world.recorder.requests[0].finish == "INTERNAL"


async def test_an_error_that_a_worker_ends_with_is_recorded() -> None:
    told = json.dumps({"error": {"message": "late", "code": "DEADLINE_EXCEEDED"}})
    steps = [*STEPS[:2], Step(NO_CHOICE, (), (told,), USAGE)]
    world = setting(a=ScriptedWorker(Reply(resuming(steps))))
    heard = await ask(make_app(world.parts), chat())
    assert (heard.body, heard.is_complete) == (plain(steps), True)
    (ended,) = world.recorder.requests
    assert (ended.finish, ended.usage, ended.failovers) == ("DEADLINE_EXCEEDED", USAGE, 0)


async def test_web_pages_of_named_origins() -> None:
    world = setting(a=ScriptedWorker(OK), keys=["k"], settings=AppSettings(origins=("https://ui.example",)))
    app = make_app(world.parts)
    asks = {"Origin": "https://ui.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    heard = await ask(app, b"", headers=asks, method="OPTIONS")
    assert (heard.status, heard.headers["access-control-allow-origin"]) == (200, "https://ui.example")
    refused = await ask(app, chat(), headers={"Origin": "https://ui.example"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://ui.example")
    other = await ask(app, b"", headers={**asks, "Origin": "https://evil.example"}, method="OPTIONS")
    assert "access-control-allow-origin" not in other.headers
    plain_app = make_app(setting(a=ScriptedWorker(OK)).parts)
    heard = await ask(plain_app, chat(stream=False), headers={"Origin": "https://ui.example"})
    assert not [name for name in heard.headers if name.startswith("access-control")]
