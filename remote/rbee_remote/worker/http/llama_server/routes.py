"""The routes of llama-server's own, for the worker's application to mount."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_remote.protocol import RESUME_FIELD, Sampling, encode
from rbee_remote.serving.body import read_json
from rbee_remote.serving.digests import digests_of
from rbee_remote.worker.http.answers.answer import respond
from rbee_remote.worker.http.answers.guard import guarded
from rbee_remote.worker.http.answers.ignored import Ignored
from rbee_remote.worker.http.answers.tracking import asked_of
from rbee_remote.worker.http.llama_server import completion, infill
from rbee_remote.worker.http.llama_server.texts import text_routes
from rbee_remote.worker.http.openai import errors, fields
from rbee_remote.worker.http.openai.biases import with_token_biases
from rbee_remote.worker.http.openai.prompts import with_plain_prompts
from rbee_remote.worker.service.service import Service


def llama_server_routes(service: Service) -> list[Route]:
    most = min(fields.MOST_CHOICES, service.config.slots + service.config.queue)
    ignored = Ignored("/completion", completion.FIELDS | {RESUME_FIELD})
    ignored_of_infill = Ignored("/infill", infill.FIELDS | {RESUME_FIELD})

    async def complete(request: Request) -> Response:
        data = await read_json(request)
        ignored.note(data)
        body = await with_plain_prompts(service, await with_token_biases(service, data), "prompt")
        job, asked = completion.read(body, data, most), asked_of(request.headers, data)
        return await respond(service, job, request, asked, await digests_of(request, data))

    async def fill_in(request: Request) -> Response:
        data = await read_json(request)
        ignored_of_infill.note(data)
        body = await with_token_biases(service, await infill.with_infill_prompt(service, data))
        job, asked = completion.read(body, body, most), asked_of(request.headers, data)
        return await respond(service, job, request, asked, await digests_of(request, data))

    async def props(_: Request) -> Response:
        """Once the model is loaded, as llama-server answers nothing before."""
        await service.state.wait_loaded()
        return JSONResponse(_props(service))

    posts = [
        Route("/completion", guarded(complete, errors.response), methods=["POST"]),
        Route("/infill", guarded(fill_in, errors.response), methods=["POST"]),
        *text_routes(service),
    ]
    return [
        *posts,
        *(Route(f"/v1{each.path}", each.endpoint, methods=["POST"]) for each in posts),
        Route("/props", guarded(props, errors.response)),
    ]


def _props(service: Service) -> dict[str, Any]:
    config, info = service.config, service.state.info
    assert info is not None
    return {
        "default_generation_settings": {
            "n_ctx": config.ctx,
            "params": {**encode(Sampling()), "seed": -1, "n_predict": -1, "max_tokens": -1},
        },
        "total_slots": config.slots,
        "model_alias": config.model,
        "model_path": config.path,
        "modalities": {"vision": False, "audio": False},
        "chat_template": info.chat_template or "",
        "bos_token": info.bos,
        "eos_token": info.eos,
        "is_sleeping": False,
    }
