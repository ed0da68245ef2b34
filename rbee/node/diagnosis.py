"""What is wrong with a node, judged from its probe and what its GPUs tell: every finding with its fix. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rbee.base.errors import NodeError
from rbee.node import gpu_backends, gpu_diagnosis
from rbee.node.finding import Finding as Finding
from rbee_remote.protocol import OLDEST_PYTHON, ErrorCode
from rbee_remote.protocol.gpus import Reason

if TYPE_CHECKING:
    from rbee.node.probe import Probe
    from rbee_remote.protocol.gpus import GpuReport

#: MB that a runtime and the uploaded wheels (150 MB on x86-64 Linux) take, and what unpacking takes meanwhile; the same
#: with CUDA's libraries; and what the smallest built-in model takes besides.
_DISK_NEEDED_MB = 300
_DISK_NEEDED_CUDA_MB = 1500
_DISK_WISHED_MB = 2000
_RAM_WISHED_MB = 1000

#: How the probe says what would mend a home that others can change.
_CHMOD = ": chmod go-w "


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What a probe cannot see. forwarding: whether sshd opens channels to sockets, None when nobody could tell."""

    local: bool
    forwarding: bool | None


def findings(probe: Probe, connection: ConnectionFacts, gpus: GpuReport | None = None) -> list[Finding]:
    """In the order in which they matter. gpus: None where the node could not be asked beyond the probe."""
    return list(_findings(probe, connection, gpus))


def obstacle(node: str, found: Sequence[Finding]) -> NodeError | None:
    """What a look at `node` ends with: the error of what fails there, None where all of it can be lived with."""
    failed = [finding for finding in found if finding.level == "fail"]
    if not failed:
        return None
    names = ", ".join(finding.title for finding in failed)
    return NodeError(
        ErrorCode.NODE_UNSUPPORTED, f"{node} cannot run models until this is fixed: {names}", hint=failed[0].fix
    )


def _findings(probe: Probe, connection: ConnectionFacts, gpus: GpuReport | None) -> Iterator[Finding]:
    yield _system(probe)
    yield _libc(probe)
    yield _python(probe)
    yield _ensurepip(probe)
    yield _compiler(probe)
    yield _home(probe)
    yield _disk(probe)
    yield _ram(probe)
    idle = gpu_backends.idle(probe)
    closed = frozenset(path for each in idle for path in each.closed)
    told = gpu_diagnosis.findings(gpus, probe.cudart, closed) if gpus else []
    yield from told if gpus and gpu_diagnosis.tells(gpus) else [_gpus(probe)]
    yield from _backends(probe, [each for each in idle if not (gpus and _is_told(each, gpus))])
    yield _run_dir(probe)
    yield _sandbox(probe)
    if not connection.local:
        yield _shell(probe)
        yield _forwarding(connection)
        yield _logout(probe)


def _system(probe: Probe) -> Finding:
    detail = f"{probe.os_release or probe.system} on {probe.machine}"
    if probe.system in {"Linux", "Darwin"} and probe.machine in {"x86_64", "aarch64"}:
        return Finding("ok", "system", detail)
    return Finding("fail", "system", detail, "rbee runs on Linux and macOS, on x86-64 and ARM64")


def _libc(probe: Probe) -> Finding:
    if probe.libc.startswith("musl"):
        fix = "prebuilt wheels are rare for musl: expect a build on the first use, or use a glibc system"
        return Finding("warn", "C library", probe.libc, fix)
    return Finding("ok", "C library", probe.libc or "unknown")


def _python(probe: Probe) -> Finding:
    fix = (
        "install Python 3.10 or newer; else rbee as one file brings its own, and otherwise lets uv fetch one, "
        "for which the node needs the internet"
    )
    if probe.python_version is None:
        return Finding("warn", "Python", "none was found", fix)
    detail = f"{'.'.join(map(str, probe.python_version))} at {probe.python}"
    if probe.python_version < OLDEST_PYTHON:
        return Finding("warn", "Python", detail, fix)
    return Finding("ok", "Python", detail)


def _ensurepip(probe: Probe) -> Finding:
    return Finding("ok", "ensurepip", "present" if probe.has_ensurepip else "missing, and not needed")


def _compiler(probe: Probe) -> Finding:
    if probe.compiler:
        return Finding("ok", "compiler", probe.compiler)
    return Finding("ok", "compiler", "none, and none is needed: wheels come from the keeper")


def _home(probe: Probe) -> Finding:
    if probe.home_problem:
        return Finding("fail", "home", _home_problem(probe), _how_to_own_home(probe))
    fix = "set `home` of the node in the inventory to a folder on another disk"
    if not probe.home_writable:
        return Finding("fail", "home", f"{probe.home} cannot be written", fix)
    if probe.home_noexec:
        return Finding("fail", "home", f"{probe.home} is mounted noexec: nothing there can be run", fix)
    return Finding("ok", "home", probe.home)


def needed_mb(backend: str) -> int:
    """MB of disk that a runtime for a backend takes while it is made."""
    return _DISK_NEEDED_CUDA_MB if backend == "cuda" else _DISK_NEEDED_MB


def _disk(probe: Probe) -> Finding:
    detail = f"{probe.disk_free_mb} MB free"
    fix = "free some space (`rbee models rm`), or set `home` to a larger disk"
    if probe.disk_free_mb < max(needed_mb(backend) for backend in ("cpu", *gpu_backends.usable(probe))):
        return Finding("warn" if probe.runtimes else "fail", "disk", detail, fix)  # what is set up goes on working
    return (
        Finding("warn", "disk", detail, fix) if probe.disk_free_mb < _DISK_WISHED_MB else Finding("ok", "disk", detail)
    )


def _ram(probe: Probe) -> Finding:
    detail = f"{probe.ram_available_mb} of {probe.ram_total_mb} MB available"
    if probe.ram_available_mb < _RAM_WISHED_MB:
        return Finding("warn", "RAM", detail, "only very small models fit: end what else runs there")
    return Finding("ok", "RAM", detail)


def _gpus(probe: Probe) -> Finding:
    if not probe.gpus:
        none = "none answers" if probe.nvidia_hangs else "none was found"
        return Finding("ok", "GPUs", f"{none}: models run on the CPU")
    names = [
        f"{gpu.name} ({gpu.memory_free_mb} of {gpu.memory_total_mb} MB free)" if gpu.memory_total_mb else gpu.name
        for gpu in probe.gpus
    ]
    return Finding("ok", "GPUs", ", ".join(names))


def _is_told(idle: gpu_backends.Idle, gpus: GpuReport) -> bool:
    """Whether the node has said since what there is to say of NVIDIA's driver."""
    answers = any(gpu.vendor == "nvidia" for gpu in gpus.gpus)
    return idle == gpu_backends.HANGING and (answers or gpus.reason == Reason.TIMEOUT)


def _backends(probe: Probe, unused: Sequence[gpu_backends.Idle]) -> Iterator[Finding]:
    if used := ", ".join(gpu_backends.summary(probe)):
        yield Finding("ok", "GPU backends", used)
    for idle in unused:
        yield Finding("warn", "idle GPU", f"{idle.gpu}: {idle.why}", idle.fix)


def _run_dir(probe: Probe) -> Finding:
    if probe.run_dir_problem:
        return Finding("fail", "sockets", probe.run_dir_problem, how_to_free_run_dir(probe))
    return Finding("ok", "sockets", probe.run_dir)


def _sandbox(probe: Probe) -> Finding:
    if probe.system != "Linux":
        return Finding("ok", "sandbox", "none on this system: workers may do what the user may")
    if probe.landlock is None:
        return Finding("ok", "sandbox", "not known before rbee has run there")
    if not probe.landlock:
        detail = "no Landlock: a worker could read the user's files if a model file took it over"
        return Finding("warn", "sandbox", detail, "use Linux 5.13 or newer with landlock in /sys/kernel/security/lsm")
    detail = f"Landlock {probe.landlock}: workers on the CPU can reach only their model and libraries"
    return Finding("ok", "sandbox", detail + "; those on GPUs do where the inventory says so" * bool(probe.gpus))


def _shell(probe: Probe) -> Finding:
    if probe.shell_noise_bytes:
        detail = f"{probe.shell} prints {probe.shell_noise_bytes} bytes before a command"
        fix = "rbee handles this; scp and rsync may not: let the rc files print only in interactive shells"
        return Finding("warn", "login shell", detail, fix)
    return Finding("ok", "login shell", probe.shell or "unknown")


def _forwarding(connection: ConnectionFacts) -> Finding:
    match connection.forwarding:
        case True:
            return Finding("ok", "forwarding", "sshd opens channels to sockets")
        case False:
            fix = "rbee uses a pipe instead, which is slower: set AllowStreamLocalForwarding yes in sshd_config"
            return Finding("warn", "forwarding", "sshd forbids channels to sockets", fix)
        case None:
            return Finding("ok", "forwarding", "not known before rbee has run there")


def _logout(probe: Probe) -> Finding:
    if not probe.kill_user_processes:
        return Finding("ok", "KillUserProcesses", "workers outlive the session")
    if probe.user_scope:
        return Finding("ok", "KillUserProcesses", "workers outlive the session in a scope of the user's own")
    return Finding("warn", "KillUserProcesses", "workers end when the last session ends", how_to_linger(probe))


def how_to_linger(probe: Probe) -> str:
    """What to do where logind ends workers together with the session."""
    return (
        f"on the node: loginctl enable-linger {probe.user or 'USER'}, or as root KillUserProcesses=no in "
        "/etc/systemd/logind.conf"
    )


def check_home(probe: Probe) -> None:
    """Others may be able neither to change the home nor to put another in its place: what lies there is run, removed
    and believed. Raises NodeError NODE_UNSUPPORTED."""
    if probe.home_problem:
        raise NodeError(
            ErrorCode.NODE_UNSUPPORTED,
            f"the node's home for rbee is not safe: {_home_problem(probe)}",
            hint=_how_to_own_home(probe),
            details={"home": probe.home},
        )


def check_run_dir(probe: Probe) -> None:
    """Nobody else may own the folder for sockets: a hive there could be anybody's.

    Raises NodeError NODE_UNSUPPORTED.
    """
    if probe.run_dir_problem:
        raise NodeError(
            ErrorCode.NODE_UNSUPPORTED,
            f"there is no safe folder for sockets on the node: {probe.run_dir_problem}",
            hint=how_to_free_run_dir(probe),
            details={"run_dir": probe.run_dir},
        )


def _home_problem(probe: Probe) -> str:
    return probe.home_problem.rpartition(_CHMOD)[0] or probe.home_problem


def _how_to_own_home(probe: Probe) -> str:
    _, _, folder = probe.home_problem.rpartition(_CHMOD)
    if folder != probe.home_problem:
        return (
            f"on the node: `chmod go-w {folder}`, or set `home` in the inventory to a folder that you alone can write"
        )
    return "set `home` of the node in the inventory to a folder that belongs to you, such as one below your own home"


def how_to_free_run_dir(probe: Probe) -> str:
    """What to do where the folder for sockets cannot be ours."""
    folder = probe.run_dir.rpartition("/")[0]
    return f"look at it with `ls -ld {folder}` and have its owner or root remove it, or set XDG_RUNTIME_DIR there"
