"""Tokens that another worker chose, taken as if they had been chosen here."""

from __future__ import annotations

from rbee_remote.protocol import Logprob, Logprobs, RemoteError, TokenEvent
from rbee_remote.worker.engine.interface import Engine, Sampled
from rbee_remote.worker.requests.generation import Generation
from rbee_remote.worker.requests.tracking import refused


def replay(engine: Engine, slot: int, generation: Generation) -> list[TokenEvent]:
    """The events of the tokens that `generation`, which has just begun in `slot`, comes with. Its end may be among
    them. Their probabilities are not known: they are told as 1.

    Raises RemoteError: USAGE for tokens that cannot follow each other, INTERNAL for an answer that cannot be read.
    """
    events: list[TokenEvent] = []
    for token in generation.tracking.tokens if generation.tracking else ():
        if generation.finish_reason is not None:
            raise refused(f"a choice goes on with token {token} after its end")
        due = generation.forced.popleft() if generation.forced else None
        if due not in (None, token):
            raise refused(f"a choice has token {token} where {due} is due")
        try:
            engine.accept(slot, token)
        except RemoteError as error:
            raise refused(error.message) from error
        piece = engine.piece(token)
        told = None if due is not None or generation.request.sampling.logprobs is None else _unknown(piece)
        event = generation.advance(Sampled(token, told), piece, is_end=engine.is_end(token))
        events += [event] if event else []
    generation.replayed()
    return events


def _unknown(piece: bytes) -> Logprobs:
    return Logprobs(Logprob(piece.decode(errors="replace"), tuple(piece), 0.0))
