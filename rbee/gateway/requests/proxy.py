"""One request, from a client that was let in to its answer: read, then passed on (`passage`) for as long as it may take
and the client stays. It is over, and its key's place free, when the client has taken its answer; its worker's is long
before, where the client is slow."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from rbee.base.errors import NodeError
from rbee.gateway.requests import asked, headers
from rbee.gateway.requests.answer import Answer
from rbee.gateway.requests.exchange import Exchange
from rbee.gateway.requests.parts import Parts
from rbee.gateway.requests.passage import Passage
from rbee.gateway.requests.patience import ClientGoneError, while_connected
from rbee_remote.protocol import ErrorCode


async def pass_on(parts: Parts, request: Request, exchange: Exchange, answer: Answer) -> None:
    """A request whose client was admitted.

    Raises RbeeError, RefusedStatusError for what ends it before its answer began, or within; ClientGoneError,
    ClientDisconnect.
    """
    with parts.gate.open(exchange.client), parts.bodies.of_one(parts.settings.most_bodies) as note:
        allowed_s = headers.timeout_s(request.headers)
        told = await asked.read(request, parts.settings.most_body, note)
        exchange.asked = told.model
        passage = Passage(parts, exchange, answer, told)
        deadline = exchange.started + (allowed_s or parts.settings.request_s)
        try:
            async with asyncio.timeout_at(deadline):
                wanted = await passage.prepare(deadline if allowed_s else exchange.started + parts.settings.wait_s)
                passage.address(request)
                await while_connected(request.receive, answer, passage.run(wanted))
        except TimeoutError as error:
            told_s = f"the request took longer than {allowed_s or parts.settings.request_s:g} s"
            raise NodeError(ErrorCode.DEADLINE_EXCEEDED, told_s) from error
        if not await answer.was_taken():
            raise ClientGoneError
