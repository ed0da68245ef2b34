"""The routes of OpenAI's API, for the worker's application to mount."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.serving.body import read_json
from rbee_remote.system.caller import caller_of
from rbee_remote.worker.http.openai import chat, completions, embeddings, errors, fields
from rbee_remote.worker.http.openai.answer import respond, when_gone
from rbee_remote.worker.service.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger("rbee.worker")


def openai_routes(service: Service) -> list[Route]:
    started_at = int(time.time())
    # More at once would find the queue full each time that they came.
    most = min(fields.MOST_CHOICES, service.config.slots + service.config.queue)

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service, started_at)]})

    async def show_model(request: Request) -> Response:
        _check_model(service, request.path_params["model"])
        return JSONResponse(_model(service, started_at))

    async def chat_completions(request: Request) -> Response:
        job = chat.read(await read_json(request), most)
        _check_model(service, job.model)
        return await respond(service, job, request)

    async def text_completions(request: Request) -> Response:
        job = completions.read(await read_json(request), most)
        _check_model(service, job.model)
        return await respond(service, job, request)

    async def make_embeddings(request: Request) -> Response:
        body = embeddings.read(await read_json(request))
        _check_model(service, body.model)
        task = asyncio.create_task(embeddings.embed(service, body, caller_of(request.headers)))
        watcher = asyncio.create_task(when_gone(request.receive, task.cancel))
        try:
            return JSONResponse(await task)
        except asyncio.CancelledError:
            if not watcher.done():  # not the client's absence: this response is to end
                raise
            raise RemoteError(ErrorCode.REQUEST_CANCELED, "the client went away") from None
        finally:
            watcher.cancel()
            task.cancel()

    return [
        Route("/v1/models", _guarded(list_models)),
        Route("/v1/models/{model:path}", _guarded(show_model)),
        Route("/v1/chat/completions", _guarded(chat_completions), methods=["POST"]),
        Route("/v1/completions", _guarded(text_completions), methods=["POST"]),
        Route("/v1/embeddings", _guarded(make_embeddings), methods=["POST"]),
    ]


def _guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors in OpenAI's form."""

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RemoteError as error:
            return errors.response(error)
        except RecursionError:
            return errors.response(errors.wrong("", "the body is nested too deeply"))
        except HTTPException as error:
            return errors.response(RemoteError(ErrorCode.USAGE, error.detail), error.status_code)
        except Exception as error:
            _log.exception("%s failed", request.url.path)
            return errors.response(
                RemoteError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}", hint="see the worker's log")
            )

    return guarded


def _check_model(service: Service, model: str) -> None:
    """Raises RemoteError MODEL_NOT_FOUND where the request names another model than the worker's."""
    if model not in ("", service.config.model):
        raise RemoteError(
            ErrorCode.MODEL_NOT_FOUND,
            f"this worker has the model {service.config.model!r}, not {model!r}",
            details={"field": "model"},
        )


def _model(service: Service, created: int) -> dict[str, Any]:
    config = service.config
    return {
        "id": config.model,
        "object": "model",
        "created": created,
        "owned_by": "rbee",
        "meta": {"n_ctx": config.ctx, "slots": config.slots},
    }
