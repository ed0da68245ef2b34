"""What a confined process can still do, tried by real processes against the real kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.sandbox import landlock, paths
from rbee_remote.sandbox.landlock import Rule

REMOTE = Path(__file__).parents[4] / "remote"

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")

#: What `attempts` says of each thing that was tried.
DONE, DENIED = "done", "denied"

_TRY = """
import ctypes, fcntl, json, os, resource, socket, struct, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
places = json.loads(sys.argv[2])
from rbee_remote.sandbox import *
from rbee_remote.sandbox import confine, landlock, paths, seccomp
from rbee_remote.protocol import RemoteError
SETUP
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def write(path):
    with open(path, "ab") as file:
        file.write(b"x")
def tcp():
    with socket.create_connection(("127.0.0.1", places["port"]), 5):
        pass
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", places["port"]))
def unix():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(places["socket"])
def listen():
    with socket.socket(socket.AF_INET) as one:
        one.bind(("127.0.0.1", 0))
def signal_parent():
    os.kill(os.getppid(), 0)
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    # A system call of this machine by its name.
    words = [ctypes.c_char_p(os.fsencode(w)) if isinstance(w, str) else ctypes.c_long(w) for w in words]
    result = libc.syscall(ctypes.c_long(numbers[name]), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
MORE = {"pidfd_open": 434, "sched_getattr": 315 if os.uname().machine == "x86_64" else 275}
numbers = {**seccomp._MACHINES[os.uname().machine][2], **seccomp._COMMON, **MORE}
libc.syscall.restype = ctypes.c_long
AT = -100
def opened(path, do, flags=os.O_RDONLY):
    one = os.open(path, flags)
    try:
        return do(one)
    finally:
        os.close(one)
def datagram_pair():
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", places["datagrams"])
def stream_pair():
    one, other = socket.socketpair()
    one.sendall(b"x")
    if other.recv(1) != b"x":
        raise OSError(1, "socketpair")
def signalled(how):
    # Signal 0 is a question: whether one may.
    parent, information = os.getppid(), ctypes.create_string_buffer(128)
    ctypes.c_int.from_buffer(information, 8).value = -1  # SI_QUEUE
    if how == "kill":
        os.kill(parent, 0)
    elif how == "group":
        os.kill(0, 0)
    elif how == "pidfd":
        call("pidfd_send_signal", call("pidfd_open", parent, 0), 0, 0, 0)
    elif how == "queue":
        call("rt_sigqueueinfo", parent, 0, ctypes.addressof(information))
    elif how == "queue_thread":
        call("rt_tgsigqueueinfo", parent, parent, 0, ctypes.addressof(information))
    elif how == "thread":
        call("tgkill", parent, parent, 0)
    else:
        call("tkill", parent, 0)
def owner(name):
    one, other = socket.socketpair()
    if name == "fcntl":
        fcntl.fcntl(one, fcntl.F_SETOWN, os.getppid())
    elif name == "fcntl_ex":
        fcntl.fcntl(one, 15, struct.pack("ii", 1, os.getppid()))
    else:
        fcntl.ioctl(one, 0x8901, struct.pack("i", os.getppid()))
def flags_of(path):
    # Sets them as they are.
    def same(one):
        now = fcntl.ioctl(one, 0x80086601, bytes(8))
        fcntl.ioctl(one, 0x40086602, now)
    opened(path, same)
def attributes():
    # Sets them as they are.
    now = ctypes.create_string_buffer(48)
    call("sched_getattr", os.getppid(), ctypes.addressof(now), 48, 0)
    call("sched_setattr", os.getppid(), ctypes.addressof(now), 0)
def unshare():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.syscall(numbers["unshare"], 0x10000000) == 0 else 1)
    if os.waitpid(pid, 0)[1]:
        raise OSError(1, "unshare")
def namespace():
    pid = call("clone", 0x10000000 | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def clone3():
    information = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17, 0, 0, 0)
    pid = call("clone3", ctypes.addressof(information), 64)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def shared_memory():
    one = call("shmget", 0, 4096, 0o1600)
    call("shmctl", one, 0, 0)
def messages():
    one = call("msgget", 0, 0o1600)
    call("msgctl", one, 0, 0)
def semaphores():
    one = call("semget", 0, 1, 0o1600)
    call("semctl", one, 0, 0)
def queue():
    os.close(call("mq_open", f"rbee-{os.getpid()}", os.O_CREAT | os.O_RDWR, 0o600, 0))
    call("mq_unlink", f"rbee-{os.getpid()}")
def own_signals():
    import faulthandler, signal
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    if len(got) != 3:
        raise OSError(1, "signals")
def own_limits():
    resource.prlimit(0, resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.sched_setaffinity(0, os.sched_getaffinity(0))
def asyncio_child():
    import asyncio
    async def run():
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", "input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        await child.communicate(b"x\\n")
        if child.returncode:
            raise OSError(1, "child")
    asyncio.run(run())
def audit():
    from rbee_remote.protocol.audit_log import AuditLog
    from pathlib import Path
    log = AuditLog(Path(places["audited"]), rotate_at=300)
    for number in range(9):  # some of them begin another file
        log.append({"action": "infer", "number": number})
    with open(places["audited"] + "/audit.log", "ab") as file:
        file.write(b"half a li")
    log.append({"action": "infer", "number": 9})
    if not log.rotated():
        raise OSError(1, "rotation")
def python():
    subprocess.run([sys.executable, "-I", "-c", "import json"], check=True, stderr=subprocess.DEVNULL)
def shell():
    subprocess.run(["/bin/sh", "-c", ":"], check=True)
def insides_of_parent():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, os.getppid(), None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, os.getppid(), None, None)
attempts = {
    "read_model": lambda: read(places["model"]), "write_model": lambda: write(places["model"]),
    "read_secret": lambda: read(places["secret"]), "list_home": lambda: os.listdir(places["home"]),
    "write_home": lambda: write(places["home"] + "/new"), "write_log": lambda: write(places["logs"] + "/audit.log"),
    "write_tmp": lambda: write(places["elsewhere"]), "remove_socket": lambda: os.unlink(places["own_socket"]),
    "read_run_dir": lambda: read(places["run_dir"] + "/hive.lock"), "tcp": tcp, "udp": udp, "unix": unix,
    "listen": listen, "signal_parent": signal_parent, "insides_of_parent": insides_of_parent, "python": python,
    "shell": shell, "import_numpy": lambda: __import__("numpy"),
    "threads": lambda: threading.Thread(target=int).start(),
    "chmod": lambda: os.chmod(places["model"], 0o600),
    "fchmod": lambda: opened(places["model"], lambda one: os.fchmod(one, 0o600)),
    "fchmodat": lambda: call("fchmodat", AT, places["model"], 0o600),
    "fchmodat2": lambda: call("fchmodat2", AT, places["model"], 0o600, 0),
    "chmod_of_secret": lambda: os.chmod(places["secret"], 0o600),
    "chown": lambda: os.chown(places["model"], -1, os.getgid()),
    "lchown": lambda: os.lchown(places["model"], -1, os.getgid()),
    "fchown": lambda: opened(places["model"], lambda one: os.fchown(one, -1, os.getgid())),
    "fchownat": lambda: call("fchownat", AT, places["model"], -1, os.getgid(), 0),
    "utimensat": lambda: os.utime(places["model"]),
    "utimensat_of_descriptor": lambda: opened(places["model"], os.utime),
    **{name: lambda name=name: call(name, places["model"], 0) for name in ("utime", "utimes")},
    "futimesat": lambda: call("futimesat", AT, places["model"], 0),
    "setxattr": lambda: os.setxattr(places["model"], "user.x", b"x"),
    "lsetxattr": lambda: os.setxattr(places["model"], "user.x", b"x", follow_symlinks=False),
    "fsetxattr": lambda: opened(places["model"], lambda one: os.setxattr(one, "user.x", b"x")),
    "removexattr": lambda: os.removexattr(places["model"], "user.a"),
    "lremovexattr": lambda: os.removexattr(places["model"], "user.b", follow_symlinks=False),
    "fremovexattr": lambda: opened(places["model"], lambda one: os.removexattr(one, "user.c")),
    "flags": lambda: flags_of(places["model"]),
    "truncate": lambda: os.truncate(places["model"], 1), "truncate_secret": lambda: os.truncate(places["secret"], 1),
    "truncate_by_reading": lambda: opened(places["model"], id, os.O_RDONLY | os.O_TRUNC),
    "truncate_by_neither": lambda: opened(places["model"], id, os.O_ACCMODE | os.O_TRUNC),
    "ftruncate": lambda: opened(places["logs"] + "/l", lambda one: os.ftruncate(one, 1), os.O_RDWR | os.O_CREAT),
    **{f"signal_{how}": lambda how=how: signalled(how)
       for how in ("kill", "group", "pidfd", "queue", "queue_thread", "thread", "task")},
    **{f"owner_{how}": lambda how=how: owner(how) for how in ("fcntl", "fcntl_ex", "ioctl")},
    "datagram_pair": datagram_pair, "stream_pair": stream_pair,
    "limits_of_parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid())),
    "io_priority": lambda: call("ioprio_set", 1, os.getppid(), 0),
    "scheduler": lambda: os.sched_setscheduler(os.getppid(), os.SCHED_OTHER, os.sched_param(0)),
    "scheduling": lambda: os.sched_setparam(os.getppid(), os.sched_param(0)),
    "scheduling_by_attributes": attributes,
    "move_pages": lambda: call("move_pages", os.getppid(), 0, 0, 0, 0, 0),
    "unshare": unshare,
    "namespace": namespace, "clone3": clone3,
    "shared_memory": shared_memory, "messages": messages, "semaphores": semaphores, "queue": queue,
    "read_library": lambda: read(places["library"]),
    "own_signals": own_signals, "own_limits": own_limits, "asyncio_child": asyncio_child, "audit": audit,
}
results = {}
for name in places["names"]:
    try:
        attempts[name]()
        results[name] = "done"
    except OSError as error:
        results[name] = "denied" if error.errno in (1, 13, 24, 11, 38) else repr(error)
    except ImportError as error:
        results[name] = "denied"
limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in ("RLIMIT_CORE", "RLIMIT_FSIZE")}
sys.stdout.write(json.dumps({"results": results, "said": said, "limits": limits}))
"""


class Place:
    """A home with a secret, a node's folders, somebody who listens, and what a process in the midst of it can do."""

    def __init__(self, root: Path, listener: socket.socket, neighbour: Path) -> None:
        self.root = root
        self.model = root / "models/m.gguf"
        self.logs = root / "node/log"
        self.run_dir = root / "run"
        self.own_socket = self.run_dir / "worker.sock"
        for folder in (self.model.parent, self.logs, self.run_dir, root / ".ssh"):
            folder.mkdir(parents=True)
        for file in (self.model, root / ".ssh/id_ed25519", self.run_dir / "hive.lock", self.own_socket):
            file.write_text("x")
        self.audited = self.logs / "audited"
        self.audited.mkdir()
        for name in ("user.a", "user.b", "user.c"):
            os.setxattr(self.model, name, b"x")
        self.places = {
            "model": str(self.model), "secret": str(root / ".ssh/id_ed25519"), "home": str(root),
            "logs": str(self.logs), "run_dir": str(self.run_dir), "own_socket": str(self.own_socket),
            "port": listener.getsockname()[1], "socket": str(neighbour),
            "datagrams": str(neighbour.with_suffix(".dgram")), "audited": str(self.audited),
            "elsewhere": str(root.parent / "elsewhere"),
        }  # fmt: skip

    def try_out(self, setup: str, *names: str) -> dict[str, Any]:
        """What became of each attempt in a process that did `setup` first, which leaves something in `said`."""
        code = _TRY.replace("SETUP", setup)
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(REMOTE), json.dumps({**self.places, "names": names})],
            capture_output=True,
            check=False,
            env={**os.environ, "HOME": str(self.root)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    neighbour = tmp_path / "neighbour.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as third,
    ):
        third.bind(str(neighbour.with_suffix(".dgram")))
        other.bind(str(neighbour))
        other.listen()
        yield Place(tmp_path / "home", listener, neighbour)


def worker(mode: str = "auto", backend: str = "cpu") -> str:
    return (
        'rules = paths.serving(places["model"], run_dir=places["run_dir"], logs=places["logs"])\n'
        f"said = confine_worker({mode!r}, {backend!r}, rules)"
    )


#: System calls that only x86-64 still has, and those of newer kernels.
_OLD = ("utime", "utimes", "futimesat") if os.uname().machine == "x86_64" else ()
_RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])
#: What a machine's own settings may forbid everybody already.
_FORBIDDEN = ("insides_of_parent", "unshare", "namespace", "clone3", "queue")
_NEW = () if _RELEASE >= (6, 6) else ("fchmodat2",)

OUTSIDE = (
    "read_secret", "list_home", "write_home", "write_model", "write_tmp", "read_run_dir", "tcp", "udp", "unix",
    "listen", "insides_of_parent", "signal_parent",
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chmod_of_secret", "chown", "lchown", "fchown", "fchownat",
    "utimensat", "utimensat_of_descriptor", *_OLD, "setxattr", "lsetxattr", "fsetxattr", "removexattr",
    "lremovexattr", "fremovexattr", "flags",
    "truncate", "truncate_secret", "truncate_by_reading", "truncate_by_neither",
    "signal_kill", "signal_pidfd", "signal_queue", "signal_queue_thread", "signal_thread", "signal_task",
    "owner_fcntl", "owner_fcntl_ex", "owner_ioctl",
    "datagram_pair", "limits_of_parent", "priority", "io_priority", "scheduler", "scheduling",
    "scheduling_by_attributes", "move_pages",
    "unshare", "namespace", "clone3", "shared_memory", "messages", "semaphores", "queue",
)  # fmt: skip
#: What any of them can do, what a worker can beside it.
OWN = ("threads", "own_signals", "own_limits")
READING = ("read_model", "import_numpy", "stream_pair")
WRITING = ("write_log", "ftruncate", "audit", "remove_socket", "python", "asyncio_child")
#: The versions of Landlock that make a difference, as older kernels have them.
VERSIONS = [
    pytest.param(
        version,
        marks=pytest.mark.skipif(version > landlock.abi(), reason=f"this kernel's Landlock is older than {version}"),
    )
    for version in range(1, 7)
]


def as_if(version: int) -> str:
    """What an older kernel's Landlock would deny is asked for, and nothing more."""
    return f"landlock.abi = lambda: {version}\n"


def test_without_a_sandbox_all_of_it_works(place: Place) -> None:
    """Else the next tests would show nothing."""
    wanted = [name for name in (*OUTSIDE, "signal_group", *OWN, *READING, *WRITING) if name not in _FORBIDDEN + _NEW]
    assert place.try_out('said = ""', *wanted)["results"] == dict.fromkeys(wanted, DONE)


def test_a_worker_reaches_what_it_needs_and_nothing_else(place: Place) -> None:
    allowed = (*OWN, *READING, *WRITING)
    found = place.try_out(worker(), *OUTSIDE, *allowed)
    assert found["results"] == dict.fromkeys(OUTSIDE, DENIED) | dict.fromkeys(allowed, DONE)
    assert found["said"] == "landlock+seccomp"
    assert found["limits"]["RLIMIT_CORE"] == 0
    assert 0 < found["limits"]["RLIMIT_FSIZE"] <= 2**30


@pytest.mark.parametrize("version", VERSIONS)
def test_a_worker_reaches_no_more_on_an_older_kernel(place: Place, version: int) -> None:
    allowed = (*OWN, *READING, *WRITING)
    found = place.try_out(as_if(version) + worker(), *OUTSIDE, *allowed)
    assert found["results"] == dict.fromkeys(OUTSIDE, DENIED) | dict.fromkeys(allowed, DONE)


@pytest.mark.parametrize("version", VERSIONS)
def test_who_reads_a_file_can_read_it_and_write_nothing(place: Place, version: int) -> None:
    denied, wanted = (*OUTSIDE, "signal_group", *WRITING, "shell"), (*OWN, *READING)
    found = place.try_out(as_if(version) + 'confine_reader(places["model"]); said = ""', *denied, *wanted)
    assert found["results"] == dict.fromkeys(denied, DENIED) | dict.fromkeys(wanted, DONE)


@pytest.mark.parametrize("version", VERSIONS)
def test_who_renders_a_template_can_do_nothing(place: Place, version: int) -> None:
    denied, wanted = (*OUTSIDE, "signal_group", *READING, *WRITING, "shell"), ("own_signals", "own_limits")
    found = place.try_out(as_if(version) + 'confine_to_nothing(); said = ""', *denied, *wanted)
    assert found["results"] == dict.fromkeys(denied, DENIED) | dict.fromkeys(wanted, DONE)


def test_no_sandbox_where_the_inventory_says_so(place: Place) -> None:
    found = place.try_out(worker("off"), "read_secret", "tcp", "unix")
    assert (found["said"], set(found["results"].values())) == ("off", {DONE})


def test_a_gpu_worker_keeps_what_a_driver_may_need(place: Place) -> None:
    found = place.try_out(worker("auto", "vulkan"), "read_secret", "unix", "shell")
    assert (found["said"], set(found["results"].values())) == ("limits", {DONE})
    assert found["limits"]["RLIMIT_CORE"] == 0


def test_a_gpu_worker_is_confined_on_demand(place: Place) -> None:
    found = place.try_out(worker("on", "cuda"), "read_secret", "tcp", "read_model")
    assert found["said"] == "landlock"
    assert found["results"] == {"read_secret": DENIED, "tcp": DENIED, "read_model": DONE}


def test_where_it_cannot_be_confined_on_fails_and_auto_goes_on(place: Place) -> None:
    """With a second thread, which would stay outside."""
    second = "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    assert place.try_out(second + worker(), "read_secret")["said"] == "limits"
    refused = f"try:\n    {worker('on').splitlines()[0]}\n    {worker('on').splitlines()[1]}\n"
    refused += "except RemoteError as error:\n    said = error.code + ': ' + error.message"
    assert place.try_out(second + refused)["said"].startswith("NODE_UNSUPPORTED: this node cannot confine the process")


@pytest.mark.parametrize("path", ["/", "HOME", "HOME/..", "relative", ""])
def test_no_search_path_opens_the_whole_home(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(paths._safe([Rule(path.replace("HOME", str(tmp_path)), 1)])) == []
    below = Rule(str(tmp_path / "node/runtimes/0123456789abcdef"), 1)
    assert list(paths._safe([below])) == [below]


def test_a_link_in_the_home_s_place_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert list(paths._safe([Rule(str(tmp_path / "home"), 1)])) == []


def test_the_loader_s_folders_are_known_with_what_is_included(tmp_path: Path) -> None:
    (tmp_path / "ld.so.conf.d").mkdir()
    settings = tmp_path / "ld.so.conf"
    settings.write_text(
        "# folders\n/a/lib:/b/lib\ninclude ld.so.conf.d/*.conf ld.so.conf none/*\nhwcap 1 x\n/c/lib # 3\n"
    )
    (tmp_path / "ld.so.conf.d/cuda.conf").write_text("/usr/local/cuda/targets/x86_64-linux/lib\n")
    (tmp_path / "ld.so.conf.d/other.conf").write_text(f"include {settings}\n/d/lib, /e/lib\n")
    found = list(paths._configured(settings, set()))
    assert found == ["/a/lib", "/b/lib", "/usr/local/cuda/targets/x86_64-linux/lib", "/d/lib", "/e/lib", "/c/lib"]
    assert list(paths._configured(tmp_path / "none", set())) == []


def test_the_folders_of_the_libraries_that_are_there_are_known(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 12   /spack/gcc 12/lib64/libgomp.so.1.0.0\n"
        "7f01-7f02 r--p 00000000 08:01 12   /spack/gcc 12/lib64/libgomp.so.1.0.0\n"
        "7f02-7f03 rw-p 00000000 00:00 0 \n7f03-7f04 rw-p 00000000 00:00 0   [heap]\n"
        "7f04-7f05 r--p 00000000 08:01 13   /home/somebody/data.bin\n"
    )
    assert list(paths._mapped(maps)) == ["/spack/gcc 12/lib64"]
    assert any(Path(folder, "libc.so.6").exists() for folder in paths._mapped(Path("/proc/self/maps")))


def test_a_library_where_only_the_loader_s_settings_tell_is_reached(place: Place) -> None:
    folder = place.root / "toolkit/lib"
    folder.mkdir(parents=True)
    (folder / "library").write_text("x")
    (place.root / "ld.so.conf").write_text(f"{folder}\n")
    place.places["library"] = str(folder / "library")
    setting = f"paths._LOADER_SETTINGS = {str(place.root / 'ld.so.conf')!r}\n"
    assert place.try_out(setting + worker(), "read_library", "read_secret")["results"] == {
        "read_library": DONE,
        "read_secret": DENIED,
    }
    assert place.try_out(worker(), "read_library")["results"] == {"read_library": DENIED}


def test_a_worker_may_read_its_adapters_and_nothing_beside_them(tmp_path: Path) -> None:
    model, adapter = str(tmp_path / "m.gguf"), str(tmp_path / "a.gguf")
    read = {rule.path for rule in paths.serving(model, run_dir="/run", logs="", adapters=[adapter])}
    assert {model, adapter} <= read
    assert not {path for path in read - {model, adapter} if path.startswith(str(tmp_path))}
