"""A filter on system calls, for what Landlock leaves open: UDP, the sockets of other programs (a hive, an agent,
docker, a session's D-Bus), which are files that nobody has to open, and the insides of the user's other processes.
"""

from __future__ import annotations

import ctypes
import platform
import socket
import struct
import sys

_SET_MODE_FILTER = 1
#: Without it kernels before 5.16 turn off a part of the processor's speculation for the process, which costs speed.
_SPEC_ALLOW = 1 << 2

_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data, of the low halves on little endian
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_X32 = 0x40000000  # x86-64's other table of numbers
_SOCKET_KIND = 0xF  # without SOCK_CLOEXEC and SOCK_NONBLOCK

#: By machine: what the audit calls the architecture, the number of seccomp(2), and the numbers of system calls.
_MACHINES: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        317,
        {
            "socket": 41, "connect": 42, "execve": 59, "ptrace": 101, "mount": 165, "add_key": 248, "request_key": 249,
            "keyctl": 250, "unshare": 272, "perf_event_open": 298, "setns": 308, "process_vm_readv": 310,
            "process_vm_writev": 311, "bpf": 321, "execveat": 322, "userfaultfd": 323,
        },
    ),
    "aarch64": (
        0xC00000B7,
        277,
        {
            "socket": 198, "connect": 203, "execve": 221, "ptrace": 117, "mount": 40, "add_key": 217,
            "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241, "setns": 268,
            "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "execveat": 281, "userfaultfd": 282,
        },
    ),
}  # fmt: skip
#: The same on every architecture. io_uring makes system calls that no filter sees.
_COMMON = {"io_uring_setup": 425, "pidfd_getfd": 438}
_EXECUTING = ("execve", "execveat")


def restrict(*, may_execute: bool) -> None:
    """From now on this thread gets EPERM for what no worker does; of sockets it can make streams on unix sockets, and
    connect none. It needs no_new_privs. Raises OSError, NotImplementedError for a machine whose numbers are not known.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        raise NotImplementedError(f"no filter for {sys.platform} on {platform.machine()}")
    _, number, _ = _MACHINES[platform.machine()]
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotImplementedError("no filter for 32 bits")
    program = _program(platform.machine(), may_execute=may_execute)
    buffer = ctypes.create_string_buffer(b"".join(program))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (_SPEC_ALLOW, 0):  # older ones than 4.17 know no such flag
        words = (number, _SET_MODE_FILTER, flags)
        if libc.syscall(*map(ctypes.c_long, words), ctypes.c_char_p(filter_)) == 0:
            return
    raise OSError(ctypes.get_errno(), "seccomp")


def _program(machine: str, *, may_execute: bool) -> list[bytes]:
    """The instructions; the last two are what all jumps lead to."""
    arch, _, numbers = _MACHINES[machine]
    denied = [
        number
        for name, number in {**numbers, **_COMMON}.items()
        if name != "socket" and not (may_execute and name in _EXECUTING)
    ]
    body: list[tuple[int, int, str, str]] = [
        (_LOAD, _ARCH, "", ""),
        (_EQUAL, arch, "", "deny"),
        (_LOAD, _NUMBER, "", ""),
        (_AT_LEAST, _X32, "deny", ""),
        *((_EQUAL, number, "deny", "") for number in denied),
        (_EQUAL, numbers["socket"], "", "allow"),
        (_LOAD, _FIRST, "", ""),
        (_EQUAL, int(socket.AF_UNIX), "", "deny"),
        (_LOAD, _SECOND, "", ""),
        (_AND, _SOCKET_KIND, "", ""),
        (_EQUAL, int(socket.SOCK_STREAM), "allow", "deny"),
    ]
    places = {"allow": len(body), "deny": len(body) + 1}
    steps = [
        (code, value, *(places[target] - index - 1 if target else 0 for target in (yes, no)))
        for index, (code, value, yes, no) in enumerate(body)
    ]
    ends = [(_RETURN, _ALLOW, 0, 0), (_RETURN, _EPERM, 0, 0)]
    return [struct.pack("=HBBI", code, yes, no, value) for code, value, yes, no in [*steps, *ends]]
