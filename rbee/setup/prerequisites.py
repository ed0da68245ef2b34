"""What keeps a node from being made ready, found before anything is written there."""

from __future__ import annotations

from rbee.base.errors import NodeError
from rbee.node.diagnosis import needed_mb
from rbee.node.probe import Probe
from rbee.setup.base.platforms import Target
from rbee.setup.runtime import OWN_PYTHON
from rbee_remote.protocol import ErrorCode

_ELSEWHERE = "set `home` of this node in the inventory to a folder on another file system"


def check(probe: Probe, backend: str = "", *, makes_runtime: bool) -> None:
    """Find out before anything is written what would fail later.

    Raises NodeError NODE_UNSUPPORTED, BOOTSTRAP_FAILED or DISK_FULL.
    """
    check_system(probe)
    if not probe.home_writable:
        raise NodeError(ErrorCode.BOOTSTRAP_FAILED, f"{probe.home} cannot be written on the node", hint=_ELSEWHERE)
    if probe.home_noexec:
        raise NodeError(
            ErrorCode.NODE_UNSUPPORTED, f"{probe.home} is mounted noexec: nothing there can be run", hint=_ELSEWHERE
        )
    if makes_runtime and probe.disk_free_mb < needed_mb(backend):
        raise disk_full(probe, backend)


def check_system(probe: Probe) -> None:
    """Raises NodeError NODE_UNSUPPORTED."""
    if probe.system not in {"Linux", "Darwin"} or Target.of(probe, OWN_PYTHON).machine not in {"x86_64", "aarch64"}:
        raise NodeError(
            ErrorCode.NODE_UNSUPPORTED,
            f"rbee runs on Linux and macOS, x86-64 and ARM64; this is {probe.system} {probe.machine}",
            hint="use another node",
        )


def disk_full(probe: Probe, backend: str) -> NodeError:
    return NodeError(
        ErrorCode.DISK_FULL,
        f"the disk of {probe.home} has {probe.disk_free_mb} MB free, a runtime needs {needed_mb(backend)}",
        hint=f"free some space, or {_ELSEWHERE}",
        details={"needed_mb": needed_mb(backend), "free_mb": probe.disk_free_mb},
    )
