"""The routes of the Messages API, for the worker's application to mount."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_remote.protocol import RESUME_FIELD, RemoteError
from rbee_remote.serving.body import read_json
from rbee_remote.serving.digests import digests_of
from rbee_remote.system.caller import caller_of
from rbee_remote.worker.http.answers.answer import respond
from rbee_remote.worker.http.answers.guard import guarded
from rbee_remote.worker.http.answers.ignored import Ignored
from rbee_remote.worker.http.answers.places import renamed
from rbee_remote.worker.http.answers.tracking import asked_of
from rbee_remote.worker.http.anthropic import body, errors
from rbee_remote.worker.service.service import Service

_PATHS = ("/v1/messages", "/v1/messages/count_tokens")


def anthropic_routes(service: Service) -> list[Route]:
    ignored = Ignored(_PATHS[0], body.FIELDS | {RESUME_FIELD})

    async def create(request: Request) -> Response:
        data = await read_json(request)
        ignored.note(data)
        job, asked = body.read(data), asked_of(request.headers, data)
        ignored.left_out(job.warnings)
        return await respond(service, job, request, asked, await digests_of(request, data))

    async def count_tokens(request: Request) -> Response:
        """Of what `create` would make of the same body."""
        job = body.read(await read_json(request))
        with service.keep_alive.leased(caller_of(request.headers).keeper):
            try:
                count = await service.count_tokens(job.parts[0].request)
            except RemoteError as error:
                raise renamed(error, job.places) from error
        return JSONResponse({"input_tokens": count})

    endpoints = dict(zip(_PATHS, (create, count_tokens), strict=True))
    return [
        Route(prefix + path.removeprefix("/v1"), guarded(endpoint, errors.response), methods=["POST"])
        for prefix in ("/v1", "")
        for path, endpoint in endpoints.items()
    ]
