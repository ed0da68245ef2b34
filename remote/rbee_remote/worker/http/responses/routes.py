"""The routes of the Responses API, for the worker's application to mount."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rbee_remote.protocol import RESUME_FIELD, ErrorCode, RemoteError
from rbee_remote.serving.body import read_json
from rbee_remote.serving.digests import digests_of
from rbee_remote.worker.http.answers.answer import respond
from rbee_remote.worker.http.answers.guard import guarded
from rbee_remote.worker.http.answers.ignored import Ignored
from rbee_remote.worker.http.answers.tracking import asked_of
from rbee_remote.worker.http.openai import errors
from rbee_remote.worker.http.openai.biases import with_token_biases
from rbee_remote.worker.http.responses import body
from rbee_remote.worker.service.service import Service

#: Fields that say what is so anyhow, with the value by which they do.
_SO_ANYHOW = {"store": False, "truncation": "disabled"}


def responses_routes(service: Service) -> list[Route]:
    unread = Ignored("/v1/responses", body.FIELDS | {RESUME_FIELD})

    async def create(request: Request) -> Response:
        data = await read_json(request)
        job, asked = body.read(await with_token_biases(service, data)), asked_of(request.headers, data)
        unread.note({name: value for name, value in data.items() if _SO_ANYHOW.get(name) != value})
        unread.left_out(job.warnings)
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
