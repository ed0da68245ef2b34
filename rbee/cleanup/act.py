"""The actions of `rbee gc`, carried out: workers by their hive, processes and files by `tidy`, rows in the registry.

Rules
- Hive and node look again at everything themselves; what has changed since it was seen is left alone, and said so.
- What was done is written down as it happens, so that it is told even if the connection breaks afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.base.errors import NodeError
from rbee.cleanup import keeper_home
from rbee.cleanup.actions import REFUSALS, Action, DropRow, EndProcess, NodeSeen, Plan, RemoveFile, StopWorker
from rbee.node.hive_client import HiveClient
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.registry import Registry
from rbee_remote.protocol import ErrorCode, StopRequest
from rbee_remote.protocol.sweep import TidyRequest, TidyResult


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action. note: why it was left alone, "" where it was not tried. bytes: freed on disk."""

    action: Action
    done: bool = False
    note: str = ""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Site:
    """A node that is to be cleaned up. patience_s: of each step of an escalation."""

    session: NodeSession
    found: Probe
    hive: HiveClient
    patience_s: float

    async def act(self, plan: Plan, seen: NodeSeen, outcomes: list[Outcome]) -> None:
        """Do what was planned; each outcome is appended as it is known.

        Raises ConnectError; NodeError and ConfigError for what failed otherwise, after the rest has been done.
        """
        failed: NodeError | None = None
        for action in plan.actions:
            if isinstance(action, StopWorker):
                try:
                    outcomes.append(await self._stop(action))
                except NodeError as error:
                    failed = failed or error
        outcomes += forget_rows(self.session.registry, [row for row in plan.actions if isinstance(row, DropRow)])
        await self._tidy(plan, seen, outcomes)
        if failed:
            raise failed

    async def _stop(self, action: StopWorker) -> Outcome:
        request = StopRequest(patience_s=self.patience_s, only_idle_s=action.only_idle_s)
        try:
            await self.hive.stop_worker(action.worker_id, request)
        except NodeError as error:
            if error.code in REFUSALS:
                return Outcome(action, note=error.message)
            if error.code is not ErrorCode.WORKER_GONE:
                raise
        self.session.registry.drop(self.session.node.name, action.worker_id)
        return Outcome(action, done=True)

    async def _tidy(self, plan: Plan, seen: NodeSeen, outcomes: list[Outcome]) -> None:
        from rbee.cleanup.payload_commands import tidy

        ends = [action for action in plan.actions if isinstance(action, EndProcess)]
        removals = [action for action in plan.actions if isinstance(action, RemoveFile)]
        if not (ends or removals):
            return
        request = TidyRequest(
            seen.survey.home,
            seen.survey.run_dir,
            tuple(action.process for action in ends),
            tuple(action.file for action in removals),
            self.patience_s,
        )
        report = await tidy(self.session.connection, self.found, request)
        actions: tuple[Action, ...] = (*ends, *removals)
        outcomes += [_outcome(action, result) for action, result in zip(actions, report.results, strict=True)]
        results = zip(ends, report.results, strict=False)  # those of processes come first
        ended = [action.process.instance for action, result in results if result.done and action.process.instance]
        self.session.registry.drop_all(self.session.node.name, ended)


def forget_rows(registry: Registry, actions: Sequence[DropRow]) -> list[Outcome]:
    """Drop rows, of any nodes. Raises ConfigError."""
    for node in dict.fromkeys(action.node for action in actions):
        registry.drop_all(node, [action.worker_id for action in actions if action.node == node])
    return [Outcome(action, done=True) for action in actions]


def remove_here(actions: Sequence[Action]) -> list[Outcome]:
    """Remove what is left over in the keeper's own home."""
    return [_remove(action) for action in actions if isinstance(action, RemoveFile)]


def _remove(action: RemoveFile) -> Outcome:
    try:
        why_not = keeper_home.remove(action.file)
    except OSError as error:
        why_not = error.strerror or str(error)
    return Outcome(action, done=not why_not, note=why_not, bytes=0 if why_not else action.file.bytes)


def _outcome(action: Action, result: TidyResult) -> Outcome:
    return Outcome(action, done=result.done, note=result.why, bytes=result.bytes if result.done else 0)
