"""The use case behind `rbee gc`: all nodes at once, each looked at, judged by `plan`, and cleaned up.

Rules
- One node that hangs delays no other, and what was done on a node is told even if it fails afterwards.
- A node that rbee never set up costs the probe and nothing else; nothing is put on any node.
- Of two at once, on one keeper, the second does nothing. Two keepers do no harm: hive and node look again themselves.
- `dry_run` changes nothing: it works on a copy of the registry, and takes no lock.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from rbee import audit
from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import silent
from rbee.base.locks import held_at_once, keeper_lock_path
from rbee.cleanup import keeper_home
from rbee.cleanup.act import Outcome, Site, forget_rows, remove_here
from rbee.cleanup.actions import (
    HERE,
    HIVE_PATIENCE_S,
    DropRow,
    EndProcess,
    Kept,
    NodeSeen,
    Policy,
    RemoveFile,
    StopWorker,
)
from rbee.cleanup.leftovers import judge_here
from rbee.cleanup.payload_commands import survey
from rbee.cleanup.plan import judge, judge_unlisted
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.hive_client import HiveClient
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.node.socket_http import SilenceError
from rbee.registry import Registry, WorkerRow
from rbee.setup.base.payload import build_payload
from rbee.setup.wheels.locked import uv_version
from rbee_remote.protocol import ErrorCode, HiveInfo, WorkerInfo

#: Nodes that are looked at together. More would wait for each other's encryption on a small machine, and a step that a
#: node is given 20 s for would be over before its turn; fewer could be held up by a handful that hang.
AT_ONCE = 32
#: Three tries to connect, the probe and the survey, on a machine that may be at work for all it is worth.
LOOKING_S = 90.0
#: Beyond the escalation (asking, SIGTERM, SIGKILL): a large runtime on a slow network disk takes its time to go.
ACTING_S = 300.0
#: Steps of an escalation, each of which takes the request's patience at most.
STOP_STEPS = 6


@dataclass(frozen=True, slots=True)
class GcRequest:
    """older_than_s: seconds, None for what the rules say. patience_s: of each step of an escalation.

    everywhere: all nodes were asked for, so that the keeper's own home is looked at, too.
    """

    older_than_s: float | None = None
    dry_run: bool = False
    patience_s: float = 5.0
    everywhere: bool = True


@dataclass(slots=True)
class NodeReport:
    """What became of one node, or of the keeper's own home (HERE).

    outcomes: of the plan's actions, as far as it came; with dry_run of all, none of them done. error: why it did not
    come further, or what failed.
    """

    node: str
    outcomes: list[Outcome] = field(default_factory=list)
    kept: tuple[Kept, ...] = ()
    error: RbeeError | None = None


Tell = Callable[[NodeReport], None]


async def clean_up(
    context: Context, nodes: Sequence[Node], request: GcRequest, *, tell: Tell
) -> list[NodeReport] | None:
    """Clean up `nodes`; None where another `rbee gc` of this keeper is at it.

    tell: hears of each as it is done. Raises ConfigError where the registry cannot
    be used; what a node fails with is in its report.
    """
    lock = nullcontext(True) if request.dry_run else held_at_once(keeper_lock_path(context.settings, keeper_home.LOCK))
    with lock as is_first:
        if not is_first:
            return None
        path = context.settings.registry_path
        with Registry.open_copy(path) if request.dry_run else context.open_registry() as registry:
            rows = _by_node(registry.rows())
            run = _Run(context, request, registry, tell, asyncio.Semaphore(AT_ONCE))
            reports = list(await asyncio.gather(*(run.visit(node, rows[node.name]) for node in nodes)))
            if request.everywhere:
                reports.append(run.clean_here(rows))
            return reports


def _by_node(rows: Sequence[WorkerRow]) -> defaultdict[str, list[WorkerRow]]:
    found: defaultdict[str, list[WorkerRow]] = defaultdict(list)
    for row in rows:
        found[row.node].append(row)
    return found


@dataclass(frozen=True, slots=True)
class _Run:
    """One `rbee gc` on its way. places: for nodes that are looked at."""

    context: Context
    request: GcRequest
    registry: Registry
    tell: Tell
    places: asyncio.Semaphore

    async def visit(self, node: Node, rows: Sequence[WorkerRow]) -> NodeReport:
        """Clean up a node. rows: what the registry has of it. Never raises what the node is to blame for."""
        report = NodeReport(node.name)
        try:
            async with self.places, asyncio.timeout(LOOKING_S) as deadline:
                await self._clean(node, rows, report, deadline)
        except RbeeError as error:
            report.error = error
        except TimeoutError:
            report.error = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "it took too long to answer")
        self._end(report)
        return report

    def clean_here(self, rows: Mapping[str, Sequence[WorkerRow]]) -> NodeReport:
        """Leftovers in the keeper's own home, and rows of nodes that are not in the inventory."""
        settings = self.context.settings
        in_use = frozenset({str(settings.cache / "payloads" / build_payload().name)})
        policy = Policy(self.context.keeper_id, self.request.older_than_s, in_use)
        own = judge_here(keeper_home.look(settings), policy)
        strangers = [row for name, found in rows.items() if name not in self.context.inventory.nodes for row in found]
        unlisted = judge_unlisted(strangers, time.time())
        report = NodeReport(HERE, kept=(*own.kept, *unlisted.kept))
        if self.request.dry_run:
            report.outcomes += [Outcome(action) for action in (*own.actions, *unlisted.actions)]
        else:
            report.outcomes += remove_here(own.actions)
            report.outcomes += forget_rows(self.registry, [row for row in unlisted.actions if isinstance(row, DropRow)])
        self._end(report)
        return report

    async def _clean(
        self, node: Node, rows: Sequence[WorkerRow], report: NodeReport, deadline: asyncio.Timeout
    ) -> None:
        # The tries of many nodes at once are noise; a node's report says why it failed.
        async with NodeSession(replace(self.context, emit=silent), self.registry, node) as session:
            found, connection = await session.probe(), session.connection
            if not (rows or found.payloads or found.runtimes or found.uv or found.hive_socket_present):
                return
            if connection.access.pipe_command is None and found.python and found.payloads:  # another keeper set it up
                payload = f"{found.home}/payloads/{min(found.payloads)}.zip"
                connection.use_pipe((found.python, "-I", payload, "pipe"))
            hive = session.hive_at(found.run_dir)
            info, workers = await _ask(hive) if found.hive_socket_present else (None, ())
            seen = NodeSeen(await survey(connection, found), info, workers)
            plan = judge(node.name, seen, rows, self._policy(session, found))
            report.kept = plan.kept
            if self.request.dry_run:
                report.outcomes += [Outcome(action) for action in plan.actions]
                return
            patience_s = STOP_STEPS * self.request.patience_s * len(plan.actions)
            deadline.reschedule(asyncio.get_running_loop().time() + ACTING_S + patience_s)
            await Site(session, found, hive, self.request.patience_s).act(plan, seen, report.outcomes)

    def _policy(self, session: NodeSession, found: Probe) -> Policy:
        in_use = {f"{found.home}/payloads/{build_payload().name}", f"{found.home}/runtimes/uv-{uv_version()}"}
        if session.facts:
            in_use.add(str(PurePosixPath(session.facts.python).parent.parent))
        return Policy(self.context.keeper_id, self.request.older_than_s, frozenset(in_use))

    def _end(self, report: NodeReport) -> None:
        """Write down what was done, and tell of it."""
        for outcome in report.outcomes:
            action = outcome.action
            if outcome.done and not isinstance(action, DropRow):  # of a row nothing is lost
                name, freed = f"gc.{action_name(action)}", outcome.bytes or None
                settings, emit = self.context.settings, self.context.emit
                audit.record(settings, name, emit=emit, node=action.node, what=action.what, why=action.why, bytes=freed)
        self.tell(report)


async def _ask(hive: HiveClient) -> tuple[HiveInfo | None, tuple[WorkerInfo, ...]]:
    """The hive and its workers; (None, ()) where none answers in time, or in words that this rbee understands."""
    try:
        async with asyncio.timeout(HIVE_PATIENCE_S):
            info = await hive.health_or_none()
            return (info, tuple(await hive.workers())) if info else (None, ())
    except (TimeoutError, SilenceError, NodeError):
        return None, ()


def action_name(action: StopWorker | DropRow | EndProcess | RemoveFile) -> str:
    """What an action is called in `--json` and in the audit log."""
    match action:
        case StopWorker():
            return "stop_worker"
        case DropRow():
            return "drop_row"
        case EndProcess():
            return "end_process"
        case RemoveFile():
            return "remove_file"
