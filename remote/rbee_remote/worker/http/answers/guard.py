"""Endpoints whose errors come in the form of their API."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rbee_remote.protocol import ErrorCode, RemoteError

Endpoint = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger("rbee.worker")


class Respond(Protocol):
    """An error as an API tells it. status: where it is not the one of the error's code."""

    def __call__(self, error: RemoteError, status: int | None = None) -> Response: ...


def guarded(endpoint: Endpoint, respond: Respond) -> Endpoint:
    @functools.wraps(endpoint)
    async def guarded_endpoint(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RemoteError as error:
            return respond(error)
        except RecursionError:
            return respond(RemoteError(ErrorCode.USAGE, "the body is nested too deeply"))
        except HTTPException as error:
            return respond(RemoteError(ErrorCode.USAGE, error.detail), error.status_code)
        except Exception as error:
            _log.exception("%s failed", request.url.path)
            return respond(RemoteError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))

    return guarded_endpoint
