"""Putting it together: who gets what, and what to say of it."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Sequence

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.sandbox import landlock, limits, paths, seccomp
from rbee_remote.sandbox.landlock import Rule

AUTO, ON, OFF = "auto", "on", "off"

#: Bytes of a file that a worker may write: its log and the audit's, which is put aside at 8 MB.
_FILE_BYTES = 2**30

_log = logging.getLogger("rbee.sandbox")


def confine_worker(mode: str, backend: str, rules: Sequence[Rule]) -> str:
    """Confine this process, which is about to load a model; what was done, in a word for people.

    mode: the inventory's. backend: cpu, or a GPU's. With AUTO a GPU's driver is left alone: this was tried on none of
    them, and NVIDIA's starts a setuid program where its modules are not loaded yet. rules: for the CPU; what drivers
    need is added. Raises RemoteError NODE_UNSUPPORTED where the mode is ON and files cannot be guarded.
    """
    if mode == OFF:
        return "off"
    on_cpu = backend == "cpu"
    if not on_cpu and mode != ON:
        harden(privileges=_uvm_is_loaded(backend))
        return "limits"
    harden()
    if on_cpu:
        limits.lower(resource.RLIMIT_FSIZE, _FILE_BYTES)
    done = _guard([*rules, *([] if on_cpu else paths.driving_gpus())], filtered=on_cpu, may_execute=True)
    if mode == ON and "landlock" not in done:
        raise RemoteError(
            ErrorCode.NODE_UNSUPPORTED,
            'this node cannot confine the process that loads a model, and its entry says sandbox = "on"',
            hint='set sandbox = "auto" for the node, or use Linux 5.13 or newer with Landlock',
        )
    return "+".join(done) or "limits"


def confine_reader(model: str) -> None:
    """For a process that only reads one file of which it does not know who made it."""
    harden()
    _guard(paths.reading(model), filtered=True, may_execute=False)


def confine_to_nothing() -> None:
    """No file, no socket, no other process: what is open is all there is."""
    harden()
    _guard([], filtered=True, may_execute=False)
    limits.lower(resource.RLIMIT_NPROC, 0)
    limits.lower(resource.RLIMIT_NOFILE, 0)


def harden(*, privileges: bool = True) -> None:
    """What breaks nothing. privileges: unless something setuid may have to be started."""
    limits.no_core()
    if privileges:
        try:
            limits.no_new_privs()
        except OSError as error:  # kernels before 3.5
            _log.info("no_new_privs: %s", error.strerror)


def _guard(rules: Sequence[Rule], *, filtered: bool, may_execute: bool) -> list[str]:
    """The names of what this system has and is now in force."""
    if limits.threads() > 1:
        _log.warning("no sandbox: the process has threads already, which would stay outside")
        return []
    done = []
    try:
        landlock.restrict(rules)
        done.append("landlock")
    except OSError as error:
        _log.info("no Landlock here: %s", error.strerror)
    if filtered:
        try:
            scoped = "landlock" in done and landlock.keeps_signals()
            seccomp.restrict(may_execute=may_execute, may_signal=may_execute and scoped)
            done.append("seccomp")
        except (OSError, NotImplementedError) as error:
            _log.info("no filter on system calls here: %s", error)
    return done


def _uvm_is_loaded(backend: str) -> bool:
    """Whether NVIDIA's driver has all it needs; for the others' there is nothing to be loaded."""
    return backend != "cuda" or os.path.exists("/dev/nvidia-uvm")  # noqa: PTH110 - a device
