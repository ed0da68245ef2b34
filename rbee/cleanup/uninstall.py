"""`rbee uninstall`: ends what runs for a home on a node, and removes every file that rbee put there.

Rules
- Looking comes first and changes nothing; another keeper's lease, or a question answered no, leaves all as it was.
- The hive is asked, because it lets requests finish; what it does not end, or where none answers, is ended by signals.
- Nothing is needed on the node but a shell, so that it works on what is half there, damaged or hung (`traces`).
- Repeating it is harmless; the second finds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from rbee.base.durations import format_duration
from rbee.base.errors import ConnectError, NodeError, UsageError
from rbee.base.events import Notice
from rbee.base.locks import keeper_lock
from rbee.cleanup.actions import HIVE_PATIENCE_S, REFUSALS
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.diagnosis import check_home
from rbee.node.hive_client import HiveClient
from rbee.node.probe import Probe
from rbee.node.session import NodeSession, open_session
from rbee.node.traces import Traces, end_script, look_script, parse, remove_script
from rbee_remote.protocol import ErrorCode, Lease, StopRequest, WorkerState

#: Seconds that processes get to end after each signal.
SIGNAL_PATIENCE_S = 5
#: Seconds for scripts that walk over, or remove, some thousand files on a slow disk.
SCRIPT_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class UninstallRequest:
    """models: remove those too. now: wait for no request, and for no other keeper. assume_yes: ask nothing."""

    models: bool = False
    now: bool = False
    assume_yes: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Uninstalled:
    """What was done, or with dry_run would be. processes: commands that ran, such as "hive". freed_mb: 10**6 bytes.

    removed: paths. kept_models, kept_models_mb: files of models that stay. foreign: paths in the home that are not
    rbee's and stay. elsewhere: a home of this node's past that was not looked at, "" for none. other_hosts: machines
    that rbee ran on from this home as well; what they have of it went, too, if they share it still.
    """

    home: str
    processes: tuple[str, ...]
    removed: tuple[str, ...]
    freed_mb: int
    kept_models: int
    kept_models_mb: int
    foreign: tuple[str, ...]
    elsewhere: str
    other_hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a worker does at the moment. leases: of all keepers."""

    worker: str
    model: str
    busy: bool
    leases: tuple[Lease, ...]


async def uninstall(context: Context, node: Node, request: UninstallRequest) -> Uninstalled:
    """Leave `node` as it was before rbee came; its inventory entry stays.

    Raises NodeError IN_USE when another keeper's lease, or a request that does not end, holds a worker;
    CLEANUP_FAILED when something cannot be removed; UsageError when models are to go and nobody confirms it;
    ConnectError and RefusedError.
    """
    async with (
        keeper_lock(context.settings, f"bootstrap-{node.name}", f"works on {node.name}", context.emit),
        open_session(context, node) as session,
    ):
        found, facts = await session.probe(), session.facts
        check_home(found)  # what is removed there is to be what was looked at
        site = _Site(session, request, found)
        outcome = await site.clear(elsewhere=facts.home if facts and facts.home != found.home else "")
        if not request.dry_run:
            session.registry.forget_node(node.name)
    return outcome


@dataclass(frozen=True, slots=True)
class _Site:
    """One node, while it is cleared."""

    session: NodeSession
    request: UninstallRequest
    found: Probe

    async def clear(self, *, elsewhere: str) -> Uninstalled:
        traces = await self._look()
        hive = await self._answering_hive()
        if not self.request.now:
            self._refuse_if_held(await self._claims(hive, traces), hive_answers=hive is not None)
        outcome = self._outcome(traces, elsewhere)
        if self.request.dry_run:
            return outcome
        if self.request.models and traces.models:
            await self._confirm(traces)
        if hive or traces.processes:
            await self._end(hive)
            traces = await self._look()  # what ended may have left or removed files
        await self._remove(traces)
        return outcome

    async def _look(self) -> Traces:
        result = await self.session.connection.run(look_script(self.found), timeout=SCRIPT_TIMEOUT_S)
        return parse(result.stdout, self.found.home)

    async def _answering_hive(self) -> HiveClient | None:
        """The hive, None where none runs, or where it hangs: then it is ended like any other process."""
        hive = self.session.hive_at(self.found.run_dir)
        if not self.found.hive_socket_present:
            return None
        try:
            async with asyncio.timeout(HIVE_PATIENCE_S):
                return hive if await hive.health_or_none() else None
        except (NodeError, TimeoutError):
            self.session.emit(Notice("the hive does not answer"))
            return None

    async def _claims(self, hive: HiveClient | None, traces: Traces) -> list[_Claim]:
        """What the workers do: by the hive, else each says it itself; one that cannot, or that failed, is nobody's."""
        if hive:
            return [
                _Claim(info.id, info.model, info.state is WorkerState.BUSY, info.leases)
                for info in await hive.workers()
                if info.state is not WorkerState.FAILED
            ]
        claims = await asyncio.gather(*(self._claim(*item) for item in traces.worker_sockets.items()))
        return [claim for claim in claims if claim]

    async def _claim(self, worker: str, socket: str) -> _Claim | None:
        try:
            status = await self.session.worker_at(socket, worker).health()
        except (NodeError, ConnectError):
            return None
        return _Claim(status.id, status.model, status.state is WorkerState.BUSY, status.leases)

    def _refuse_if_held(self, claims: Iterable[_Claim], *, hive_answers: bool) -> None:
        """Raises NodeError IN_USE for a worker that another keeper holds, or whose request nobody ends."""
        for claim in claims:
            worker = f"worker {claim.worker} ({claim.model}) on {self.session.node.name}"
            others = [lease for lease in claim.leases if lease.keeper != self.session.context.keeper_id]
            if others:
                holder, left = _holder(others[0])
                raise NodeError(
                    ErrorCode.IN_USE,
                    f"{worker} is in use by {holder}{left}",
                    hint="wait until that is over, or end it anyway with --now",
                    details={"worker": claim.worker, "keeper": others[0].keeper},
                )
            if claim.busy and not hive_answers:
                raise NodeError(
                    ErrorCode.IN_USE,
                    f"{worker} answers a request, and no hive is running that could wait for it to end",
                    hint="wait until it is done, or use --now",
                    details={"worker": claim.worker},
                )

    async def _confirm(self, traces: Traces) -> None:
        """Raises UsageError for a no, and where there is nobody to ask."""
        if self.request.assume_yes:
            return
        what = f"{_count(len(traces.models), 'file')} of models on {self.session.node.name} ({traces.models_mb} MB)"
        if self.session.context.ask is None:
            raise UsageError(f"--models removes {what}, and there is no terminal to confirm it on", hint="add --yes")
        if not await self.session.context.ask(f"Remove {what} too?"):
            raise UsageError("nothing was removed", hint="without --models the models stay")

    async def _end(self, hive: HiveClient | None) -> None:
        """Raises NodeError: one of REFUSALS when requests take too long or too many are open, CLEANUP_FAILED for what
        nothing ends."""
        if hive:
            try:
                await hive.stop(StopRequest(drain=not self.request.now))
            except NodeError as error:
                if error.code in REFUSALS:
                    raise
                self.session.emit(Notice(f"the hive did not end as it should: {error.message}"))
        await self.session.connection.run(end_script(self.found, SIGNAL_PATIENCE_S), timeout=SCRIPT_TIMEOUT_S)
        left = (await self._look()).processes
        if left:
            raise NodeError(
                ErrorCode.CLEANUP_FAILED,
                f"process {left[0].pid} ({left[0].command}) on {self.session.node.name} does not end",
                hint="it may wait for a disk that hangs; nothing was removed, so try again later",
                details={"pids": ", ".join(str(process.pid) for process in left)},
            )

    async def _remove(self, traces: Traces) -> None:
        """Raises NodeError CLEANUP_FAILED for what is left of what should be gone."""
        script = remove_script(self.found, traces, models=self.request.models)
        result = await self.session.connection.run(script, timeout=SCRIPT_TIMEOUT_S)
        left = (await self._look()).removable(models=self.request.models)
        if left:
            raise NodeError(
                ErrorCode.CLEANUP_FAILED,
                f"{left[0]} on {self.session.node.name} cannot be removed",
                hint="see who may write there; `rbee uninstall` goes on where it stopped",
                details={"left": len(left), "said": result.stderr.strip()[-300:]},
            )

    def _outcome(self, traces: Traces, elsewhere: str) -> Uninstalled:
        models = self.request.models
        return Uninstalled(
            home=traces.home,
            processes=tuple(process.command for process in traces.processes),
            removed=traces.removable(models=models),
            freed_mb=traces.freed_mb(models=models),
            kept_models=0 if models else len(traces.models),
            kept_models_mb=0 if models else traces.models_mb,
            foreign=traces.foreign,
            elsewhere=elsewhere,
            other_hosts=traces.other_hosts,
        )


def _holder(lease: Lease) -> tuple[str, str]:
    """Who holds a worker, and for how long, as parts of a sentence."""
    who = f"keeper {lease.keeper}" if lease.keeper else "a client that does not say who it is"
    left = "" if lease.left_s is None else f" for another {format_duration(max(1.0, round(lease.left_s)))}"
    return who, left


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
