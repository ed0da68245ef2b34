"""Random schedules of infer, gc, crash, reboot and reconnect over a scripted node, with the real code that decides.

Whatever happens in whatever order: no request that runs is ever ended by a clean-up, nobody's innocent process gets a
signal, and no orphan is left once its time is over and a clean-up came by.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.cleanup.scripted_node import World, worlds_clock

KEEPERS = ("a" * 16, "b" * 16)
SECONDS = (0.5, 5.0, 20.0, 45.0, 90.0, 400.0, 2000.0, 90_000.0)
KEEP_ALIVES = (0.0, 5.0, 300.0, 7200.0, -1.0)
#: Three bytes are one step: what happens, and two numbers that it is about.
STEP = 3


def happen(world: World, what: int, first: int, second: int) -> None:
    """One step of a schedule."""
    keeper, seconds = KEEPERS[first % 2], SECONDS[second % len(SECONDS)]
    deeds: tuple[Callable[[], object], ...] = (
        *[lambda: world.infer(keeper, seconds, KEEP_ALIVES[first % len(KEEP_ALIVES)])] * 4,
        lambda: world.advance(seconds),
        lambda: world.advance(SECONDS[second % 4]),
        lambda: world.clients_go(keeper),
        lambda: world.clients_return(keeper),
        world.kill_hive,
        world.freeze_hive if first % 2 else world.thaw_hive,
        lambda: world.kill_worker(second),
        lambda: world.freeze_worker(second),
        lambda: world.thaw_worker(second),
        world.reboot,
        lambda: world.innocent(second),
        lambda: world.machine.jump(86_400.0 * (1 if first % 2 else -1)),
    )
    chosen = what % (len(deeds) + 4)
    if chosen < len(deeds):
        deeds[chosen]()
        return
    between = deeds[second % len(deeds)]
    world.collect(keeper, (None, None, 60.0, 0.0)[first % 4], lambda: (between(), None)[1])


@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=20 * STEP, max_size=20 * STEP))
def test_no_schedule_ends_a_live_request_or_leaves_an_orphan(schedule: bytes) -> None:
    world = World()
    with worlds_clock(world):
        for at in range(0, len(schedule) - STEP + 1, STEP):
            happen(world, *schedule[at : at + STEP])
            assert world.harm == []
        world.thaw_hive()
        for keeper in KEEPERS:
            world.clients_go(keeper)
        world.advance(120.0)
        for _ in range(2):
            world.collect(KEEPERS[0], None, lambda: None)
            world.advance(120.0)
        assert world.orphans() == []
        world.advance(200_000.0)
        for keeper in KEEPERS:
            world.collect(keeper, 60.0, lambda: None)  # those whose keep-alive is without end
        world.collect(KEEPERS[0], 60.0, lambda: None)
        assert [worker.id for worker in world.workers if worker.leases.left_s(without="") == 0] == []
        assert world.harm == []
        world.collect(KEEPERS[0], None, lambda: None)
        assert {*world.rows[KEEPERS[0]]} <= {worker.id for worker in world.workers}
