"""The routes of OpenAI's API, for the worker's application to mount."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_remote.protocol import RESUME_FIELD, ErrorCode, RemoteError, TrackedUsage
from rbee_remote.protocol.abilities import CHAT
from rbee_remote.protocol.model_lists import model_context, model_head, model_list
from rbee_remote.serving.body import read_json
from rbee_remote.serving.digests import digests_of
from rbee_remote.system.caller import caller_of
from rbee_remote.worker.http.answers import guard
from rbee_remote.worker.http.answers.answer import respond
from rbee_remote.worker.http.answers.guard import Endpoint, Respond
from rbee_remote.worker.http.answers.ignored import Ignored
from rbee_remote.worker.http.answers.tracking import Asked, asked_of, usage_headers
from rbee_remote.worker.http.answers.waiting import when_gone
from rbee_remote.worker.http.openai import chat, completions, embeddings, errors, fields, rerank
from rbee_remote.worker.http.openai.biases import with_token_biases
from rbee_remote.worker.http.openai.prompts import with_plain_prompts
from rbee_remote.worker.service.service import Service

T = TypeVar("T")

#: What a worker serves for rbee itself, under /v1.
_OWN = {"admin", "inference", "loading", "news", "ready", "requests"}


def openai_routes(service: Service) -> list[Route]:
    started_at = int(time.time())
    # More at once would find the queue full each time that they came.
    most = min(fields.MOST_CHOICES, service.config.slots + service.config.queue)
    unread = {
        path: Ignored(f"/v1/{path}", known | {RESUME_FIELD})
        for path, known in (
            ("chat/completions", chat.FIELDS),
            ("completions", completions.FIELDS),
            ("embeddings", {field.name for field in dataclasses.fields(embeddings.EmbeddingsBody)}),
            ("rerank", {field.name for field in dataclasses.fields(rerank.RerankBody)}),
        )
    }

    async def list_models(_: Request) -> Response:
        return JSONResponse(model_list([_model(service, started_at)]))

    async def show_model(request: Request) -> Response:
        _check_model(service, request.path_params["model"])
        return JSONResponse(_model(service, started_at))

    async def chat_completions(request: Request) -> Response:
        body = await read_json(request)
        unread["chat/completions"].note(body)
        job, asked = chat.read(await with_token_biases(service, body), most), asked_of(request.headers, body)
        return await respond(service, job, request, asked, await digests_of(request, body))

    async def text_completions(request: Request) -> Response:
        body = await read_json(request)
        unread["completions"].note(body)
        plain = await with_plain_prompts(service, await with_token_biases(service, body), "prompt")
        job, asked = completions.read(plain, most), asked_of(request.headers, body)
        return await respond(service, job, request, asked, await digests_of(request, body))

    async def make_embeddings(request: Request) -> Response:
        data = await read_json(request)
        unread["embeddings"].note(data)
        plain = await with_plain_prompts(service, data, "input")
        body, asked = embeddings.read(plain), asked_of(request.headers, data)
        answer = await _while_there(request, embeddings.embed(service, body, caller_of(request.headers)))
        return _of_texts(answer, answer["usage"]["prompt_tokens"], asked)

    async def make_ranking(request: Request) -> Response:
        data = await read_json(request)
        unread["rerank"].note(data)
        body, asked = rerank.read(data), asked_of(request.headers, data)
        answer, tokens = await _while_there(request, rerank.rerank(service, body, caller_of(request.headers)))
        return _of_texts(answer, tokens, asked)

    async def health(_: Request) -> Response:
        """As llama-server has it, whose clients wait for the model by it."""
        if service.state.is_ready:
            return JSONResponse({"status": "ok"})
        return errors.response(RemoteError(ErrorCode.ALL_SLOTS_BUSY, "the model is not loaded"))

    async def list_adapters(_: Request) -> Response:
        """As llama-server has it."""
        adapters = enumerate(service.config.adapters)
        return JSONResponse([{"id": id_, "path": one.name, "scale": one.scale} for id_, one in adapters])

    routes = [
        Route("/v1/models", _guarded(list_models)),
        Route("/v1/models/{model:path}", _guarded(show_model)),
        Route("/v1/chat/completions", _guarded(chat_completions), methods=["POST"]),
        Route("/v1/completions", _guarded(text_completions), methods=["POST"]),
        Route("/v1/embeddings", _guarded(make_embeddings), methods=["POST"]),
        Route("/v1/rerank", _guarded(make_ranking), methods=["POST"]),
        Route("/v1/reranking", _guarded(make_ranking), methods=["POST"]),
    ]
    # Some clients want an address that ends with /v1, others one without.
    bare = [Route(each.path.removeprefix("/v1"), each.endpoint, methods=list(each.methods or ())) for each in routes]
    own = [Route("/health", _guarded(health)), Route("/lora-adapters", _guarded(list_adapters))]
    return [*routes, *bare, *own]


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work, which ends when its client goes away. Raises what it raises."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(when_gone(request.receive, task.cancel))
    try:
        return await task
    except asyncio.CancelledError:
        if not watcher.done():  # not the client's absence: this response is to end
            raise
        raise RemoteError(ErrorCode.REQUEST_CANCELED, "the client went away") from None
    finally:
        watcher.cancel()
        task.cancel()


def _of_texts(answer: Any, tokens: int, asked: Asked) -> Response:
    """tokens: that were read."""
    return JSONResponse(answer, headers=usage_headers(TrackedUsage(tokens, 0, 0)) if asked.told else None)


def unknown_endpoint(
    routes: Sequence[Route], respond: Callable[[str], Respond]
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """For starlette: what no route serves, told with what there is. respond: the form of errors for a path."""
    served = sorted(
        f"{method} {route.path}"
        for route in routes
        if route.include_in_schema
        for method in route.methods or ()
        if _is_shown(method, route.path)
    )

    async def on_unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = f"this worker does not serve {request.method} {request.url.path:.200}; it serves {', '.join(served)}"
        answer = respond(request.url.path)(RemoteError(ErrorCode.USAGE, told), error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    return on_unknown


def _is_shown(method: str, path: str) -> bool:
    """HEAD goes without saying, and so do the paths without /v1, and what is for rbee itself."""
    return method != "HEAD" and path.startswith("/v1/") and path.split("/")[2] not in _OWN


def _guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors in OpenAI's form."""
    return guard.guarded(endpoint, errors.response)


def _check_model(service: Service, model: str) -> None:
    """Raises RemoteError MODEL_NOT_FOUND where it is another model than the worker's. Only who asks about models hears
    that: a worker has one, and answers with it whatever name a request has for it."""
    if model != service.config.model:
        raise RemoteError(
            ErrorCode.MODEL_NOT_FOUND,
            f"this worker has the model {service.config.model!r}, not {model!r}",
            details={"field": "model"},
        )


def _model(service: Service, created: int) -> dict[str, Any]:
    config, info = service.config, service.state.info
    told: dict[str, Any] = {
        **model_head(config.model, created),
        **model_context(config.ctx),
        "meta": {"n_ctx": config.ctx, "slots": config.slots},
    }
    if info is None:  # it is loading
        return told
    told["meta"] |= {"n_ctx_train": info.n_ctx_train, "n_vocab": info.n_vocab}
    told["capabilities"] = list(info.able)
    if info.use.pooling:
        told["meta"]["pooling"] = info.use.pooling
    if info.chat_template is None and CHAT in info.able:
        told["warnings"] = ["the model has no chat template: ChatML is taken, unless a request has a chat_template"]
    return told
