"""For clients that count and look: a text's tokens, and a chat as text."""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_remote.serving.body import read_json
from rbee_remote.system.caller import caller_of
from rbee_remote.worker.http.answers.guard import guarded
from rbee_remote.worker.http.openai import chat, errors, fields
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.requests.prompt import check_text
from rbee_remote.worker.service.service import Service


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizeBody:
    """add_special: what the model wants around a text. parse_special: control tokens are read as such."""

    model: str = ""
    content: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class DetokenizeBody:
    model: str = ""
    tokens: tuple[int, ...] = ()


def text_routes(service: Service) -> list[Route]:
    async def tokenize(request: Request) -> Response:
        body = fields.read(TokenizeBody, await read_json(request))
        check_text("content", body.content)
        with service.keep_alive.leased(caller_of(request.headers).keeper):
            tokens = await service.tokenize(body.content, alone=not body.add_special, plain=not body.parse_special)
            if not body.with_pieces:
                return JSONResponse({"tokens": tokens})
            pieces = [_piece(piece) for piece in await service.pieces(tokens)]
        return JSONResponse({"tokens": [{"id": id, "piece": piece} for id, piece in zip(tokens, pieces, strict=True)]})

    async def detokenize(request: Request) -> Response:
        body = fields.read(DetokenizeBody, await read_json(request))
        with service.keep_alive.leased(caller_of(request.headers).keeper):
            content = b"".join(await service.pieces(body.tokens))
        return JSONResponse({"content": content.decode("utf-8", "replace")})

    async def apply_template(request: Request) -> Response:
        """Of the body of a chat completion: what the model would be given."""
        data: Any = await read_json(request)
        if not isinstance(data, dict) or not data.get("messages"):
            raise wrong("messages", "must hold at least one message")
        (part, *_) = chat.read(data).parts
        with service.keep_alive.leased(caller_of(request.headers).keeper):
            return JSONResponse({"prompt": await service.render(part.request)})

    return [
        Route("/tokenize", guarded(tokenize, errors.response), methods=["POST"]),
        Route("/detokenize", guarded(detokenize, errors.response), methods=["POST"]),
        Route("/apply-template", guarded(apply_template, errors.response), methods=["POST"]),
    ]


def _piece(piece: bytes) -> str | list[int]:
    """Its bytes, where it is a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
