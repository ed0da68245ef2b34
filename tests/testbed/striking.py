"""A keeper in the test's own process, whose events say when to strike: at the very moment at which a phase begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rbee.base.errors import RbeeError
from rbee.base.events import Event, Finished, Notice, Phase, PhaseStarted, Token
from rbee.base.settings import Settings, keeper_id
from rbee.context import Context
from rbee.infer.infer import infer
from rbee.infer.request import InferRequest
from rbee.inventory import load
from rbee.registry import Registry
from tests.testbed.cli import Rbee

#: In the middle of an answer: after this many tokens.
TOKENS_BEFORE = 3


@dataclass
class Blow:
    """Calls `strike` once, when `phase` begins for the first time; in phase 8 when some tokens have come.

    The keeper waits meanwhile, so that nothing of the phase has happened. events: all that it reported.
    """

    phase: Phase
    strike: Callable[[], object]
    struck: bool = False
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case PhaseStarted(phase=phase):
                due = phase is self.phase is not Phase.INFERENCE
            case Token(tokens=tokens):
                due = self.phase is Phase.INFERENCE and tokens >= TOKENS_BEFORE
            case _:
                due = False
        if due and not self.struck:
            self.struck = True
            self.strike()

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Token))


def context_of(rbee: Rbee) -> Context:
    """What `rbee`, as a command, would work with."""
    settings = Settings(rbee.home)
    return Context(
        settings=settings,
        inventory=load(rbee.inventory, settings),
        open_registry=lambda: Registry.open(settings.registry_path),
        keeper_id=keeper_id(settings),
    )


async def ask(rbee: Rbee, request: InferRequest, blow: Blow) -> Finished | RbeeError:
    """What came of `infer` by the keeper whose home and inventory are `rbee`'s."""
    try:
        return await infer(request, replace(context_of(rbee), emit=blow))
    except RbeeError as error:
        return error


def forget_workers(rbee: Rbee) -> None:
    """The registry is a cache: without it the next `infer` goes through all eight phases."""
    for path in rbee.home.glob("workers.db*"):
        path.unlink()
