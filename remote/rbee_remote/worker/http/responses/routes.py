"""The routes of the Responses API, for the worker's application to mount."""

from __future__ import annotations

import functools
import logging

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.serving.body import read_json
from rbee_remote.serving.digests import digests_of
from rbee_remote.worker.http.answers.answer import respond
from rbee_remote.worker.http.answers.guard import guarded
from rbee_remote.worker.http.answers.tracking import asked_of
from rbee_remote.worker.http.openai import errors
from rbee_remote.worker.http.openai.biases import with_token_biases
from rbee_remote.worker.http.responses import body
from rbee_remote.worker.service.service import Service

_log = logging.getLogger("rbee.worker")


def responses_routes(service: Service) -> list[Route]:
    async def create(request: Request) -> Response:
        data = await read_json(request)
        job, asked = body.read(await with_token_biases(service, data)), asked_of(request.headers, data)
        for ignored in job.warnings:
            _log_once(ignored)
        if data.get("store"):
            _log_once("store is ignored: nothing of a response is kept")
        return await respond(service, job, request, asked, await digests_of(request, data))

    async def of_kept(request: Request) -> Response:
        told = f"no response {request.path_params['rest']!r:.80}: this server keeps none, whatever store says"
        return errors.response(RemoteError(ErrorCode.USAGE, told), 404)

    routes = [
        Route("/v1/responses", guarded(create, errors.response), methods=["POST"]),
        Route(
            "/v1/responses/{rest:path}",
            guarded(of_kept, errors.response),
            methods=["GET", "DELETE"],
            include_in_schema=False,  # nothing that is served
        ),
    ]
    bare = [Route(each.path.removeprefix("/v1"), each.endpoint, methods=list(each.methods or ())) for each in routes]
    return [*routes, *bare]


@functools.lru_cache(maxsize=256)
def _log_once(what: str) -> None:
    _log.info("a request's %s", what)
