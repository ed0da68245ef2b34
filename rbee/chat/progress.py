"""What a chat waits for, in a few words."""

from __future__ import annotations

from rbee.base.events import Event, Phase, PhaseStarted, Progress
from rbee.render.text import Meter

_WORDS = {
    Phase.REGISTRY: "looking for a worker",
    Phase.MODEL: "looking for the model",
    Phase.FIT: "checking the memory",
    Phase.START: "starting a worker",
    Phase.REGISTER: "starting a worker",
    Phase.READY: "loading the model",
    Phase.INFERENCE: "waiting for the answer",
}


class Waiting:
    """Events in, words out."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def words(self, event: Event) -> str | None:
        """None for an event that says nothing of what goes on."""
        match event:
            case PhaseStarted(phase=Phase.NODE, text=node):
                return f"connecting to {node}"
            case PhaseStarted(phase=phase):
                return _WORDS[phase]
            case Progress():
                meter = self._meters.setdefault(event.key, Meter())
                meter.add(event)
                return f"{event.text}  {meter.figures(event)}".rstrip()
        return None
