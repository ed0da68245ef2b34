"""A filter on system calls, for what Landlock leaves open: UDP, the sockets of other programs (a hive, an agent,
docker, a session's D-Bus), which are files that nobody has to open, the insides of the user's other processes and
signals to them, and the mode, owner, times and attributes of every file. What only newer kernels' Landlock guards,
emptying files and signals, is denied here for the older ones.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
import sys
import termios
from collections.abc import Iterator

_SET_MODE_FILTER = 1
#: Without it kernels before 5.16 turn off a part of the processor's speculation for the process, which costs speed.
_SPEC_ALLOW = 1 << 2

# Offsets in struct seccomp_data, of the low halves on little endian: what is compared here are ints to the kernel.
_NUMBER, _ARCH, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_X32 = 0x40000000  # x86-64's other table of numbers
_SOCKET_KIND = 0xF  # without SOCK_CLOEXEC and SOCK_NONBLOCK
_NEW_NAMESPACES = 0x7E020000  # clone's flags for time have no room in it
_F_SETOWN_EX = 15

#: By machine: what the audit calls the architecture, the number of seccomp(2), and the numbers of system calls.
_MACHINES: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        317,
        {
            "open": 2, "ioctl": 16, "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "connect": 42,
            "socketpair": 53, "clone": 56, "execve": 59, "kill": 62, "semget": 64, "semop": 65, "semctl": 66,
            "shmdt": 67, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "fcntl": 72, "truncate": 76,
            "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "rt_sigqueueinfo": 129,
            "utime": 132, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "mount": 165,
            "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198,
            "fremovexattr": 199, "tkill": 200, "semtimedop": 220, "tgkill": 234, "utimes": 235, "mq_open": 240,
            "mq_unlink": 241, "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251,
            "migrate_pages": 256, "openat": 257, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "unshare": 272,
            "move_pages": 279, "utimensat": 280, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "prlimit64": 302,
            "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "sched_setattr": 314,
            "bpf": 321, "execveat": 322, "userfaultfd": 323,
        },
    ),
    "aarch64": (
        0xC00000B7,
        277,
        {
            "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
            "fcntl": 25, "ioctl": 29, "ioprio_set": 30, "mount": 40, "truncate": 45, "fchmod": 52, "fchmodat": 53,
            "fchownat": 54, "fchown": 55, "openat": 56, "utimensat": 88, "unshare": 97, "ptrace": 117,
            "sched_setparam": 118, "sched_setscheduler": 119, "kill": 129, "tkill": 130, "tgkill": 131,
            "rt_sigqueueinfo": 138, "setpriority": 140, "mq_open": 180, "mq_unlink": 181, "msgget": 186,
            "msgctl": 187, "msgrcv": 188, "msgsnd": 189, "semget": 190, "semctl": 191, "semtimedop": 192,
            "semop": 193, "shmget": 194, "shmctl": 195, "shmat": 196, "shmdt": 197, "socket": 198, "socketpair": 199,
            "connect": 203, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221,
            "migrate_pages": 238, "move_pages": 239, "rt_tgsigqueueinfo": 240, "perf_event_open": 241,
            "prlimit64": 261, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
            "sched_setattr": 274, "bpf": 280, "execveat": 281, "userfaultfd": 282,
        },
    ),
}  # fmt: skip
#: The same on every architecture. io_uring makes system calls that no filter sees.
_COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "clone3": 435, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "process_mrelease": 448, "fchmodat2": 452,
    "setxattrat": 463, "removexattrat": 466, "file_setattr": 469,
}  # fmt: skip
_EXECUTING = ("execve", "execveat")
#: Their arguments are in memory, where a filter cannot look. The C library does without them where they are missing.
_OPAQUE = ("clone3", "openat2")
#: Whose first argument tells who is signalled.
_SIGNALLING = ("kill", "tkill", "tgkill", "rt_tgsigqueueinfo")

#: What is looked at more closely, by the block of `_blocks` that does it. sched_setaffinity is not among them: its
#: argument is a thread's number as often as a process's, and OpenMP cannot start the threads that it shall bind.
_CLOSER = {
    "socket": "streams", "socketpair": "streams", "clone": "flags", "fcntl": "owners", "ioctl": "requests",
    "open": "second", "openat": "third", "prlimit64": "own", "sched_setparam": "own", "sched_setscheduler": "own",
    "sched_setattr": "own", "migrate_pages": "own", "move_pages": "own", **dict.fromkeys(_SIGNALLING, "self"),
}  # fmt: skip
#: Requests of ioctl: attributes of a file that is open for reading alone, who gets a descriptor's signals (two names
#: of sockets), and typing for the user.
_REQUESTS = (0x40086602, 0x401C5820, 0x8901, 0x8902, termios.TIOCSTI, 0x541C)

_Step = tuple[int, int, str, str]


def restrict(*, may_execute: bool, may_signal: bool = False) -> None:
    """From now on this thread gets EPERM for what no worker does; of sockets it can make streams on unix sockets, and
    connect none. may_signal: others than this process, which is for where something else says whom.

    It needs no_new_privs. Raises OSError, NotImplementedError for a machine whose numbers are not known.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        raise NotImplementedError(f"no filter for {sys.platform} on {platform.machine()}")
    _, number, _ = _MACHINES[platform.machine()]
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotImplementedError("no filter for 32 bits")
    program = _program(platform.machine(), os.getpid(), may_execute=may_execute, may_signal=may_signal)
    buffer = ctypes.create_string_buffer(b"".join(program))
    filter_ = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (_SPEC_ALLOW, 0):  # older ones than 4.17 know no such flag
        words = (number, _SET_MODE_FILTER, flags)
        if libc.syscall(*map(ctypes.c_long, words), ctypes.c_char_p(filter_)) == 0:
            return
    raise OSError(ctypes.get_errno(), "seccomp")


def _blocks(pid: int) -> dict[str, list[_Step]]:
    """What jumps lead to. Each ends in one, or with the program."""
    truncating = os.O_TRUNC | os.O_ACCMODE
    # Before its third version Landlock lets who may read a file empty it by opening it for reading with O_TRUNC.
    emptying: list[_Step] = [
        (_AND, truncating, "", ""),
        (_EQUAL, os.O_TRUNC, "deny", ""),
        (_EQUAL, truncating, "deny", "allow"),
    ]
    return {
        "streams": [
            (_LOAD, _FIRST, "", ""),
            (_EQUAL, int(socket.AF_UNIX), "", "deny"),
            (_LOAD, _SECOND, "", ""),
            (_AND, _SOCKET_KIND, "", ""),
            (_EQUAL, int(socket.SOCK_STREAM), "allow", "deny"),
        ],
        "flags": [(_LOAD, _FIRST, "", ""), (_ANY_BIT, _NEW_NAMESPACES, "deny", "allow")],
        "owners": [
            (_LOAD, _SECOND, "", ""),
            (_EQUAL, fcntl.F_SETOWN, "deny", ""),  # the kernel signals whom it names
            (_EQUAL, _F_SETOWN_EX, "deny", "allow"),
        ],
        "requests": [
            (_LOAD, _SECOND, "", ""),
            *((_EQUAL, request, "deny", "") for request in _REQUESTS[:-1]),
            (_EQUAL, _REQUESTS[-1], "deny", "allow"),
        ],
        "second": [(_LOAD, _SECOND, "", ""), *emptying],
        "third": [(_LOAD, _THIRD, "", ""), *emptying],
        "own": [(_LOAD, _FIRST, "", ""), (_EQUAL, 0, "allow", ""), (_EQUAL, pid, "allow", "deny")],
        "self": [(_LOAD, _FIRST, "", ""), (_EQUAL, pid, "allow", "deny")],  # 0 is everybody in the group
        "allow": [(_RETURN, 0x7FFF0000, "", "")],
        "deny": [(_RETURN, 0x00050001, "", "")],  # EPERM
        "missing": [(_RETURN, 0x00050026, "", "")],  # ENOSYS
    }


def _dispatch(machine: str, *, may_execute: bool, may_signal: bool) -> Iterator[_Step]:
    """From a system call's number to the block for it."""
    arch, _, numbers = _MACHINES[machine]
    yield (_LOAD, _ARCH, "", "")
    yield (_EQUAL, arch, "", "deny")
    yield (_LOAD, _NUMBER, "", "")
    yield (_AT_LEAST, _X32, "deny", "")
    allowed = {*(_EXECUTING if may_execute else ()), *(_SIGNALLING if may_signal else ())}
    for name, number in {**numbers, **_COMMON}.items():
        if name not in allowed:
            yield (_EQUAL, number, "missing" if name in _OPAQUE else _CLOSER.get(name, "deny"), "")
    yield (_AT_LEAST, 0, "allow", "")


def _program(machine: str, pid: int, *, may_execute: bool, may_signal: bool) -> list[bytes]:
    """The instructions. All jumps lead forward, by 255 at most."""
    steps = list(_dispatch(machine, may_execute=may_execute, may_signal=may_signal))
    places = {}
    for name, block in _blocks(pid).items():
        places[name] = len(steps)
        steps += block
    return [
        struct.pack("=HBBI", code, *(places[target] - index - 1 if target else 0 for target in (yes, no)), value)
        for index, (code, value, yes, no) in enumerate(steps)
    ]
