"""A worker's states as the hive knows them: what can happen in each, and the state that follows.

A worker says of itself that it is starting, loading, then idle, ready or busy (no slot taken, some, all), and at last
stopping or failed. The hive adds what it does itself, and how the process has ended. The picture in
docs/architecture.md is made from this table by `tools/worker_states.py`.
"""

from __future__ import annotations

import enum

from rbee_remote.protocol import WorkerState

#: States before the first request can be served.
COMING = (WorkerState.STARTING, WorkerState.LOADING)
#: States in which a worker serves requests.
SERVING = (WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY)


class Event(enum.Enum):
    """SAYS_…: the worker, of itself. STOP: the hive has it end, whatever for. EXIT: its process has ended as planned.
    CRASH: it has ended otherwise, or was ended for an error."""

    SAYS_STARTING = "says starting"
    SAYS_LOADING = "says loading"
    SAYS_IDLE = "says idle"
    SAYS_READY = "says ready"
    SAYS_BUSY = "says busy"
    SAYS_STOPPING = "says stopping"
    SAYS_FAILED = "says failed"
    STOP = "is told to stop"
    EXIT = "exits"
    CRASH = "crashes"

    @classmethod
    def says(cls, state: WorkerState) -> Event:
        return cls(f"says {state.value}")


class ImpossibleEvent(ValueError):
    """An event that the table does not have for the state."""


_SERVES = {Event.says(state): state for state in SERVING}
#: A worker that says it failed is of no more use; FAILED it is for the hive once its process has ended.
_ENDS = {
    Event.SAYS_STOPPING: WorkerState.STOPPING,
    Event.SAYS_FAILED: WorkerState.STOPPING,
    Event.STOP: WorkerState.STOPPING,
    Event.CRASH: WorkerState.FAILED,
}

#: A hive that reads slowly misses lines of status, so a worker can serve without having said that it loads. One that is
#: to stop stays so, whatever it says. One that failed is there for those who want to know why.
TRANSITIONS: dict[WorkerState, dict[Event, WorkerState]] = {
    WorkerState.STARTING: {
        Event.SAYS_STARTING: WorkerState.STARTING,
        Event.SAYS_LOADING: WorkerState.LOADING,
        **_SERVES,
        **_ENDS,
    },
    WorkerState.LOADING: {Event.SAYS_LOADING: WorkerState.LOADING, **_SERVES, **_ENDS},
    **{state: {**_SERVES, **_ENDS, Event.EXIT: WorkerState.STOPPING} for state in SERVING},
    WorkerState.STOPPING: {**dict.fromkeys(Event, WorkerState.STOPPING), Event.CRASH: WorkerState.FAILED},
    WorkerState.FAILED: {Event.CRASH: WorkerState.FAILED},
}


def next_state(state: WorkerState, event: Event) -> WorkerState:
    """Raises ImpossibleEvent."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ImpossibleEvent(f"a worker that is {state.value} {event.value}") from None
