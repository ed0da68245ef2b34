"""What a node is like: one script, one round trip, and a frozen answer that every later step decides from.

Rules
- The script (`probe.sh`) only tells; what follows from it is decided here, in pure code.
- What the node says is not trusted to make sense: a field that cannot be read gets its default. Without a system and a
  home there is no probe.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from rbee.base.errors import NodeError
from rbee.base.retries import PROBE_S
from rbee.inventory import Node
from rbee.node import graphics, nvidia
from rbee.node.graphics import Graphics
from rbee.transport.connection import Connection, quote
from rbee.transport.strict_modes import unsafe_because_script
from rbee_remote.protocol import HIVE_SOCKET, ErrorCode

#: Bytes of the answer that are read, the longest value that is kept, and most keys and values of one key.
_MAX_OUTPUT = 2**20
_MAX_VALUE = 4096
_MAX_VALUES = 1000

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

#: A socket's path has 108 bytes with its final zero on Linux, 104 elsewhere.
_MAX_SOCKET = {"Linux": 107}
_MAX_SOCKET_ELSEWHERE = 103
_LONGEST_SOCKET = "worker-0123456789abcdef.keeper"


@dataclass(frozen=True, slots=True)
class Python:
    """A Python on the node that starts. has_ensurepip: it can make virtual environments with pip by itself."""

    path: str
    version: tuple[int, ...]
    has_ensurepip: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """vendor: nvidia, amd, intel or apple. Memory in MB (10**6 bytes), 0 where it is not known.

    compute: NVIDIA's compute capability, (8, 9); () where it is not known.
    """

    vendor: str
    name: str
    memory_total_mb: int = 0
    memory_free_mb: int = 0
    driver: str = ""
    compute: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A node at one moment. Sizes in MB (10**6 bytes); empty strings and zeros for what is not known.

    machine: x86_64, aarch64, or as the system calls it. libc: "glibc 2.36", "musl 1.2.4", "macos 14.5".
    home: rbee's, absolute; home_problem: how others could change what is there, empty when only its user and root can.
    disk_free_mb: there, or where it will be. run_dir: for sockets; run_dir_problem: why it cannot be used, empty when
    it can. python: the best one's path, with python_version. payloads: digests.
    runtimes: keys. libraries: SHA-256 of the wheels that they have CUDA's libraries of. uv: names of binaries such as
    uv-0.9.1. rtt_s: seconds that the probe took.
    kill_user_processes: logind ends what a session started with it; user_scope: what `systemd-run --user --scope`
    starts stays nevertheless. cpu: what the processor can, in the kernel's words. cudart: major versions of CUDA
    whose runtime library and cuBLAS are installed. cuda: the newest CUDA that NVIDIA's driver knows, (12, 4).
    nvidia_hangs: it did not answer in time. graphics: what there is for Vulkan and ROCm. landlock: the number of the
    kernel's ABI, 0 for none, None where none could ask.
    """

    system: str
    home: str
    machine: str = ""
    libc: str = ""
    os_release: str = ""
    user: str = ""
    shell: str = ""
    python: str = ""
    python_version: tuple[int, ...] | None = None
    pythons: tuple[Python, ...] = ()
    has_ensurepip: bool = False
    compiler: str = ""
    cores: int = 1
    ram_total_mb: int = 0
    ram_available_mb: int = 0
    disk_free_mb: int = 0
    home_writable: bool = True
    home_noexec: bool = False
    home_problem: str = ""
    run_dir: str = ""
    run_dir_problem: str = ""
    hive_socket_present: bool = False
    boot_id: str = ""
    kill_user_processes: bool = False
    user_scope: bool = False
    landlock: int | None = None
    cpu: frozenset[str] = frozenset()
    cudart: frozenset[int] = frozenset()
    cuda: tuple[int, ...] = ()
    nvidia_hangs: bool = False
    gpus: tuple[Gpu, ...] = ()
    graphics: Graphics = graphics.NONE
    payloads: frozenset[str] = frozenset()
    runtimes: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()
    uv: frozenset[str] = frozenset()
    shell_noise_bytes: int = 0
    rtt_s: float = 0.0

    @property
    def summary(self) -> str:
        """One line: system, processor, memory, devices, Python."""
        python = ".".join(map(str, self.python_version)) if self.python_version else "none"
        gpus = ", ".join(gpu.name for gpu in self.gpus)
        parts = [
            f"{self.os_release or self.system} {self.machine}",
            f"{self.cores} cores",
            f"{self.ram_available_mb / 1000:.1f} of {self.ram_total_mb / 1000:.1f} GB free",
            gpus,
            f"Python {python}",
        ]
        return ", ".join(part for part in parts if part)


async def probe(connection: Connection, node: Node) -> Probe:
    """Ask the node everything at once. Raises NodeError NODE_UNSUPPORTED for nonsense, ConnectError."""
    started = time.monotonic()
    completed = await connection.run(script(node.home), timeout=PROBE_S)
    found = parse(completed.stdout)
    return replace(found, shell_noise_bytes=len(completed.noise), rtt_s=time.monotonic() - started)


def script(home: str | None) -> str:
    """The probe's script. home: as in the inventory."""
    text = files("rbee.node").joinpath("probe.sh").read_text(encoding="utf-8")
    return f"home_wanted={quote(home or '')}\n{unsafe_because_script()}{text}{nvidia.script()}{graphics.script()}"


def parse(output: bytes) -> Probe:
    """The probe from what the script printed. Raises NodeError NODE_UNSUPPORTED without system and home."""
    said = Said.of(output)
    system, home = said.text("system"), said.text("home").rstrip("/")
    if not system or not home.startswith("/") or not _is_path(home):
        raise NodeError(
            ErrorCode.NODE_UNSUPPORTED,
            "the node does not report its system and its home folder",
            hint="rbee needs a POSIX shell at /bin/sh with the usual tools (id, uname, sed, df)",
            details={"said": output[:200].decode(errors="replace")},
        )
    run_dir, problem = _run_dir(said, system, home)
    pythons = tuple(filter(None, map(_python, said.texts("python"))))
    best = max(pythons, key=lambda python: python.version, default=None)  # the first of equal ones
    ram_total, ram_available = _ram(said)
    drawn = graphics.parse(said.texts)
    return Probe(
        system=system,
        home=home,
        machine=_MACHINES.get(said.text("machine").lower(), said.text("machine")),
        libc=said.text("libc"),
        os_release=said.text("os"),
        user=said.text("user"),
        shell=said.text("shell"),
        python=best.path if best else "",
        python_version=best.version if best else None,
        pythons=pythons,
        has_ensurepip=best is not None and best.has_ensurepip,
        compiler=said.text("compiler"),
        cores=max(said.number("cores"), 1),
        ram_total_mb=ram_total // 10**6,
        ram_available_mb=ram_available // 10**6,
        disk_free_mb=said.number("disk_free_kb") * 1024 // 10**6,
        home_writable=said.text("home_writable") == "yes",
        home_noexec="noexec" in said.text("home_mount").split(","),
        home_problem=said.text("home_problem"),
        run_dir=run_dir,
        run_dir_problem=problem,
        hive_socket_present=not problem and f"{run_dir}/{HIVE_SOCKET}" in said.texts("hive_socket"),
        boot_id=said.text("boot_id"),
        kill_user_processes=said.text("kill_user_processes").lower() in {"yes", "true", "1", "on"},
        user_scope=said.text("user_scope") == "yes",
        landlock=_landlock(said.texts("landlock")),
        gpus=_gpus(said, system, drawn),
        graphics=drawn,
        payloads=frozenset(name.removesuffix(".zip") for name in said.names("payload")),
        runtimes=frozenset(said.names("runtime")),
        libraries=frozenset(said.names("library")),
        uv=frozenset(said.names("uv")),
        cpu=frozenset(said.text("cpu").split()),
        cudart=frozenset(filter(None, map(_whole, said.texts("cudart")))),
        cuda=nvidia.version(said.text("cuda")),
        nvidia_hangs=said.text("nvidia_hangs") == "yes",
    )


class Said:
    """The lines `key=value` of the script."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values

    @classmethod
    def of(cls, output: bytes) -> Said:
        values: dict[str, list[str]] = {}
        for line in output[:_MAX_OUTPUT].decode("utf-8", errors="replace").split("\n"):
            key, separator, value = line.partition("=")
            known = key in values or len(values) < _MAX_VALUES
            kept = values.setdefault(key, []) if separator and known else []
            if len(kept) < _MAX_VALUES:
                kept.append(value.strip()[:_MAX_VALUE])
        return cls(values)

    def texts(self, key: str) -> Sequence[str]:
        return self._values.get(key, ())

    def names(self, key: str) -> Sequence[str]:
        """Those values that are names of files such as ours."""
        return [text for text in self.texts(key) if re.fullmatch(r"\w[\w.-]*", text, re.ASCII)]

    def text(self, key: str) -> str:
        """The first value, "" for none."""
        return next(iter(self.texts(key)), "")

    def number(self, key: str) -> int:
        """The first value as a whole number, 0 for anything else."""
        return _whole(self.text(key))


def _whole(text: str) -> int:
    # Eighteen digits hold any size in bytes; more is nonsense.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _is_path(text: str) -> bool:
    """Whether scripts and sockets can name it: no control characters, which no sane path has and no shell passes on."""
    return text.isprintable() or not any(ord(character) < 0x20 or character == "\x7f" for character in text)


def _landlock(answers: Sequence[str]) -> int | None:
    """As each Python was answered by the kernel: an ABI from 1, -1 for none, anything else for no answer."""
    known = [0 if answer == "-1" else _whole(answer) for answer in answers if answer == "-1" or _whole(answer)]
    return min(max(known), 99) if known else None


def _python(text: str) -> Python | None:
    """`3.11.2 1 /usr/bin/python3`: version, whether it has ensurepip, path."""
    version, _, rest = text.partition(" ")
    ensurepip, _, path = rest.partition(" ")
    numbers = tuple(map(_whole, version.split(".")))
    if not path.startswith("/") or not _is_path(path) or len(numbers) != 3 or numbers[0] != 3:
        return None
    return Python(path, numbers, ensurepip == "1")


def _ram(said: Said) -> tuple[int, int]:
    """(total, available) in bytes; a limit of the container's control group counts like the end of the memory."""
    total = said.number("ram_total_kb") * 1024 or said.number("ram_total_bytes")
    available = said.number("ram_available_kb") * 1024 or said.number("ram_available_pages") * said.number("page_size")
    for maximum, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit = said.number(f"cgroup:{maximum}")
        if 0 < limit < total:
            total = limit
            available = min(available, max(limit - said.number(f"cgroup:{used}"), 0))
    return total, available


def _run_dir(said: Said, system: str, home: str) -> tuple[str, str]:
    """(the folder for sockets, what is wrong with it).

    The one where a hive listens; else the user's runtime folder, unless it goes away when this very session ends (no
    lingering); else one in /tmp, where nobody else may have been first: a hive there would be theirs. The name holds a
    digest of `home`, so that two homes have two hives.
    """
    name = hashlib.sha256(home.encode()).hexdigest()[:8]
    fits = _MAX_SOCKET.get(system, _MAX_SOCKET_ELSEWHERE) - len(f"/{_LONGEST_SOCKET}")
    bases = [base for base in said.texts("run_base") if base.startswith("/") and _is_path(base)]
    folders = [f"{base.rstrip('/')}/rbee/{name}" for base in bases if base not in said.texts("logout_removes")]
    ending = [f"{base.rstrip('/')}/rbee/{name}" for base in bases if base in said.texts("logout_removes")]
    fallback = f"/tmp/rbee-{said.number('uid')}/{name}"  # noqa: S108 - its owner and type are checked, its mode is 0700
    folders = [folder for folder in (*folders, fallback) if len(folder.encode()) <= fits]
    problems = {fallback: said.text("tmp_problem")}
    for folder in (*folders, *ending):
        if f"{folder}/{HIVE_SOCKET}" in said.texts("hive_socket") and not problems.get(folder):
            return folder, ""
    return folders[0], problems.get(folders[0], "")


def _gpus(said: Said, system: str, drawn: Graphics) -> tuple[Gpu, ...]:
    gpus = [
        Gpu("nvidia", card.name, card.memory_total_mb, card.memory_free_mb, card.driver, card.compute)
        for card in nvidia.cards(said.texts("nvidia"))
    ]
    gpus += [
        Gpu(card.vendor, card.name, card.memory_total_mb, card.memory_free_mb, card.driver)
        for card in drawn.cards
        if card.vendor != "nvidia"
    ] or [Gpu("amd", name or "AMD GPU") for name in said.texts("rocm")]
    if system == "Darwin" and said.text("machine") in {"arm64", "aarch64"}:
        gpus.append(Gpu("apple", "Apple GPU"))
    return tuple(gpus)
