"""Biases in llama-server's words: by text instead of by token, and `ignore_eos`."""

from __future__ import annotations

from typing import Any

from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.service.service import Service

#: As good as never: the protocol's lowest.
_NEVER = -100.0


async def with_token_biases(service: Service, data: Any) -> Any:
    """The body with its biases by token id. Waits for the model only where it is needed to tell.

    Raises RemoteError USAGE naming the field, WORKER_GONE, or why the load failed.
    """
    if not isinstance(data, dict):
        return data  # whoever reads it says so
    given = data.get("logit_bias")
    ignores_end = data.get("ignore_eos") in (True, "true")
    if given is None and not ignores_end:
        return data
    biases: dict[str, Any] = {}
    for key, said in _pairs({} if given is None else given):
        bias = _NEVER if said is False else said
        if isinstance(key, int) or key.isdecimal():
            biases[str(key)] = bias
        else:
            biases |= dict.fromkeys(map(str, await service.tokenize(key, alone=True)), bias)
    if ignores_end:
        biases |= dict.fromkeys(map(str, await service.end_tokens()), _NEVER)
    return {**data, "logit_bias": biases}


def _pairs(given: Any) -> list[tuple[int | str, Any]]:
    """Of an object, or a list of pairs."""
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise wrong("logit_bias", "must be an object, or a list of pairs")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or type(pair[0]) not in (int, str):
            raise wrong("logit_bias", "must have tokens or texts with a bias each")
    return [(key, bias) for key, bias in pairs if bias is not None]
