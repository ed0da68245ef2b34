"""Whether a model that is being downloaded can serve what it is wanted for, as soon as its first bytes tell."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rbee_remote.gguf.early import LOOKED_AT, first_abilities
from rbee_remote.protocol import DownloadRequest, ErrorCode, RemoteError
from rbee_remote.protocol.abilities import ADAPTER, ADAPTER_HINT, refusal

_OTHER_MODEL = "name a model that chats, or ask this one over HTTP (rbee serve)"

#: What may not have been written yet of the bytes that have come.
_BUFFERED = 2**17


class EarlyLook:
    """target: the file to make, whose parts lie beside it."""

    def __init__(self, request: DownloadRequest, target: Path) -> None:
        self._request = request
        self._target = target
        self._is_over = not request.ability

    def __call__(self, done: int) -> None:
        """done: bytes that have come. Raises RemoteError USAGE."""
        if self._is_over or done < LOOKED_AT + _BUFFERED:
            return
        self._is_over = True
        for path in sorted(self._target.parent.glob(f"{self._target.stem}*.part")):
            able: tuple[str, ...] = ()
            with contextlib.suppress(OSError):
                able = first_abilities(path)
            if why := refusal(self._request.model, able, self._request.ability):
                hint = ADAPTER_HINT if ADAPTER in able else _OTHER_MODEL
                raise RemoteError(ErrorCode.USAGE, why, hint=hint, details={"able": list(able)})
            if able:
                return
