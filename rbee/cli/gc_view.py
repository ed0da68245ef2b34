"""What `rbee gc` did, as lines and as one JSON document; and the status that it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbee.base.errors import RbeeError
from rbee.base.events import Notice
from rbee.cleanup.act import Outcome
from rbee.cleanup.actions import HERE, Action, DropRow, EndProcess, RemoveFile, StopWorker
from rbee.cleanup.install import Schedule
from rbee.cleanup.run import NodeReport, action_name
from rbee.cli.failed_nodes import why
from rbee.cli.shell import Options
from rbee.render import Renderer
from rbee.render.text import amount, error_data, one_line
from rbee_remote.protocol import ErrorCode

#: (what it is called when it would be done, when it was done)
_VERBS = {
    "stop_worker": ("stop", "stopped"),
    "drop_row": ("forget", "forgot"),
    "end_process": ("end", "ended"),
    "remove_file": ("remove", "removed"),
}


def show(report: NodeReport, renderer: Renderer, options: Options, *, dry_run: bool) -> None:
    """One line on stdout for each action that was done, or would be; on stderr what was not, and what failed."""
    name = report.node if report.node != HERE else "here"
    for outcome in report.outcomes:
        if dry_run or (outcome.done and not options.quiet):
            renderer.write(f"{one_line(action_line(outcome, dry_run=dry_run))}\n")
        elif outcome.note:
            renderer(Notice(f"{outcome.action.node or name}: left {outcome.action.what} alone: {outcome.note}"))
    if options.verbose:
        for kept in report.kept:
            renderer(Notice(f"{kept.node or name}: kept {kept.what}: {kept.why}"))
    if report.error:
        renderer.error(RbeeError(report.error.code, f"{name}: {why(report.error)}"))


def action_line(outcome: Outcome, *, dry_run: bool) -> str:
    """`gpu1: stopped worker 3f9a… (smollm2:135m): idle for 12m5s, and its keep-alive is 5m`."""
    action = outcome.action
    would, did = _VERBS[action_name(action)]
    freed = action.file.bytes if dry_run and isinstance(action, RemoveFile) else outcome.bytes
    size = f" ({amount(freed)})" if freed else ""
    return f"{action.node or 'here'}: {f'would {would}' if dry_run else did} {action.what}{size}: {action.why}"


def document(reports: Sequence[NodeReport] | None, *, dry_run: bool) -> dict[str, Any]:
    """All of it. reports: None where another `rbee gc` is at work. A node of null is the keeper's own home."""
    found = reports or ()
    return {
        "dry_run": dry_run,
        "another_is_running": reports is None,
        "actions": [_outcome_data(outcome) for report in found for outcome in report.outcomes],
        "kept": [
            {"node": kept.node or None, "what": kept.what, "why": kept.why} for report in found for kept in report.kept
        ],
        "errors": [{"node": report.node, **error_data(report.error)} for report in found if report.error],
        "freed_bytes": sum(outcome.bytes for report in found for outcome in report.outcomes),
    }


def _outcome_data(outcome: Outcome) -> dict[str, Any]:
    action = outcome.action
    return {
        "node": action.node or None,
        "action": action_name(action),
        **_subject(action),
        "why": action.why,
        "done": outcome.done,
        "note": outcome.note,
        "bytes": outcome.bytes,
    }


def _subject(action: Action) -> dict[str, Any]:
    match action:
        case StopWorker():
            return {"worker": action.worker_id, "model": action.model}
        case DropRow():
            return {"worker": action.worker_id}
        case EndProcess():
            seen = action.process
            return {"pid": seen.pid, "command": seen.command, "worker": seen.instance or None, "rss_mb": seen.rss_mb}
        case RemoveFile():
            return {"kind": action.file.kind, "path": action.file.path, "size": action.file.bytes}


def exit_status(reports: Sequence[NodeReport]) -> int:
    """0, the status of the error that all nodes failed with, or PARTIAL_FAILURE's."""
    errors = [report.error for report in reports if report.node != HERE]
    statuses = {error.exit_status if error else 0 for error in errors}
    if len(statuses) == 1:
        return statuses.pop()
    return RbeeError(ErrorCode.PARTIAL_FAILURE, "").exit_status if statuses else 0


def schedule_text(found: Schedule) -> str:
    """For people: what to put where."""
    units = "~/.config/systemd/user"
    return (
        f"# For cron: add this line with `crontab -e`.\n{found.crontab}\n\n"
        f"# For systemd: {units}/rbee-gc.service\n{found.service}\n"
        f"# {units}/rbee-gc.timer\n{found.timer}\n"
        "# Then: systemctl --user enable --now rbee-gc.timer; loginctl enable-linger, to go on while logged out.\n"
    )
