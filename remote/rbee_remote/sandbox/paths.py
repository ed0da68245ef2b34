"""Which files a confined process needs: its interpreter and libraries, the model, and where a worker writes."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from rbee_remote.protocol.splits import parts_of
from rbee_remote.sandbox.landlock import (
    EXECUTE,
    IOCTL_DEV,
    MAKE_DIR,
    MAKE_REG,
    READ_DIR,
    READ_FILE,
    REMOVE_DIR,
    REMOVE_FILE,
    TRUNCATE,
    WRITE_FILE,
    Rule,
)

_READ = READ_FILE | READ_DIR
_RUN = _READ | EXECUTE
_LOG = _READ | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE  # a log that is renamed is removed where it was
_WRITE = _LOG | MAKE_DIR | REMOVE_DIR
_DEVICE = READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV

#: /usr and /opt are for everybody who logs in, and what is below them is named in case that one holds the user's home.
_LIBRARIES = ("/usr", "/opt", "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib",
              "/usr/local/lib64")  # fmt: skip
#: What the C library and Python look up: names of users, the time zone, the libraries' cache. Nothing secret.
_SETTINGS = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/ld-musl-x86_64.path",
    "/etc/ld-musl-aarch64.path", "/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo", "/etc/passwd", "/etc/group",
    "/etc/nsswitch.conf", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies", "/etc/hostname",
    "/nix/store", "/gnu/store",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_LOADER_SETTINGS = "/etc/ld.so.conf"
_MAPS = "/proc/self/maps"

#: What GPU drivers open, by what they are documented to open.
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/shm")  # noqa: S108 - the drivers' own
_GPU_READ = ("/usr", "/opt", "/etc/OpenCL", "/etc/vulkan", "/etc/nvidia", "/etc/amd", "/run/nvidia-persistenced")
_GPU_CACHES = (".nv", ".cache/nvidia", ".cache/mesa_shader_cache", ".cache/mesa_shader_cache_db", ".AMD")


def reading(model: str, adapters: Iterable[str] = ()) -> list[Rule]:
    """For a process that reads a model, all its parts where it is split, and writes nothing."""
    files = [*parts_of(model), *adapters]
    return list(_safe([*_interpreter(os.environ), *(Rule(file, READ_FILE) for file in files)]))


def serving(model: str, *, run_dir: str, logs: str, adapters: Iterable[str] = ()) -> list[Rule]:
    """For a worker: it removes its socket at its end, and writes the audit log where its hive is gone. Its own log and
    its socket are open by then. logs: "" for none."""
    rules = [*reading(model, adapters), Rule(run_dir, REMOVE_FILE)]
    return rules + [Rule(logs, _LOG)] * bool(logs)


def driving_gpus() -> list[Rule]:
    """What a driver opens, and where it keeps what it has compiled."""
    home = _home()
    gpus = [Rule(path, _DEVICE) for pattern in _GPU_DEVICES for path in glob.glob(pattern)]  # noqa: PTH207
    caches = [os.environ.get("CUDA_CACHE_PATH", ""), *(str(home / name) for name in _GPU_CACHES)]
    read = [Rule(path, _RUN) for path in (*_GPU_READ, str(home / ".local/share/vulkan"))]
    return [*gpus, *read, *(Rule(path, _WRITE) for path in caches if path)]


def _interpreter(env: Mapping[str, str]) -> Iterator[Rule]:
    """Python, the payload, the runtime, and whatever libraries they link to."""
    payload = str(Path(__file__).parents[2])
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, payload, *sys.path}
    program = Path(sys.executable)
    own |= {str(program.parent), str(program.resolve().parent)}
    libraries = [*_LIBRARIES, *_configured(Path(_LOADER_SETTINGS), set()), *_mapped(Path(_MAPS))]
    libraries += [*env.get("LD_LIBRARY_PATH", "").split(":"), env.get("GGML_BACKEND_PATH", "")]
    for path in (*own, *libraries):
        yield Rule(path, _RUN)
    for path in (*_SETTINGS, "/proc", "/sys"):
        yield Rule(path, _READ)
    for path in _DEVICES:
        yield Rule(path, READ_FILE | WRITE_FILE)


def _configured(settings: Path, seen: set[Path]) -> Iterator[str]:
    """The folders that the system's loader looks into, by its settings and those that they include."""
    if settings in seen:
        return
    seen.add(settings)
    lines = []
    with suppress(OSError):
        lines = settings.read_text(errors="replace").splitlines()
    for line in lines:
        words = line.partition("#")[0].replace(",", " ").replace(":", " ").split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for found in sorted(glob.glob(str(settings.parent / pattern))):  # noqa: PTH207 - it can be absolute
                    yield from _configured(Path(found), seen)
        elif words[:1] != ["hwcap"]:
            yield from words


def _mapped(maps: Path) -> Iterator[str]:
    """The real folders of the libraries that this process has: an interpreter that was built with its own, as Spack,
    EasyBuild and Linuxbrew do, has them where no list can tell, and others beside them."""
    with suppress(OSError):
        lines = maps.read_text(errors="surrogateescape").splitlines()
        paths = {line.split(maxsplit=5)[5] for line in lines if ".so" in line and "/" in line}
        yield from sorted({str(Path(path).parent) for path in paths})


def _safe(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Without those that would open the user's whole home: a search path can name it, or the root."""
    home = _home().resolve()
    for rule in rules:
        if rule.path.startswith("/") and not home.is_relative_to(Path(rule.path).resolve()):
            yield rule


def _home() -> Path:
    """The root for a user who has none."""
    found = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where nobody knows
    return found if found.is_absolute() else Path("/")
