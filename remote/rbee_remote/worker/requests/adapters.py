"""How strongly each of a worker's adapters is applied to one request. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rbee_remote.protocol import AdapterScale, ErrorCode, RemoteError
from rbee_remote.protocol.load import AdapterFile

#: Further from 0 no adapter makes sense, and numbers overflow.
MOST_SCALE = 1000.0


def scales_of(adapters: Sequence[AdapterFile], lora: Sequence[AdapterScale] | None) -> tuple[float, ...]:
    """One for each adapter, in the order of their ids; none where the worker has no adapter. lora: as a request has it,
    None for the scales that the model was loaded with. Raises RemoteError USAGE for an adapter that the worker does not
    have, and for a scale that is none."""
    if lora is None:
        return tuple(adapter.scale for adapter in adapters)
    scales = [0.0] * len(adapters)
    for place, wanted in enumerate(lora):
        if not 0 <= wanted.id < len(adapters):
            there = f"its ids are 0 to {len(adapters) - 1}" if adapters else "it was loaded without any"
            raise _wrong(f"lora[{place}].id", f"the worker has no adapter {wanted.id}: {there}")
        if not math.isfinite(wanted.scale) or abs(wanted.scale) > MOST_SCALE:
            raise _wrong(f"lora[{place}].scale", f"a scale is from {-MOST_SCALE:g} to {MOST_SCALE:g}")
        scales[wanted.id] = wanted.scale
    return tuple(scales)


def _wrong(field: str, what: str) -> RemoteError:
    hint = "GET /lora-adapters of the worker lists them"
    return RemoteError(ErrorCode.USAGE, f"{field}: {what}", hint=hint, details={"field": field})
