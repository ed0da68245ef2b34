"""A run of the tests has a folder of its own, in place of what is the user's.

Rules
- The user's caches are read and nothing else: what a run needs of them is copied.
- Whatever looks for HOME, a runtime folder, a cache or an agent, in the tests' process or a child of it, finds one of
  the run, or none.
- pytest's main process makes the folder and removes it; those of xdist inherit it with the environment.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

#: The folder of the run, and the user's own wheel cache.
_FOLDER, _WHEELS = "TESTBED_FOLDER", "TESTBED_USER_WHEELS"
#: What tells programs of the user's settings, secrets and folders, and is not for those under test.
_PRIVATE = ("RBEE_HOME", "RBEE_INVENTORY", "RBEE_WHEEL_INDEX", "HF_", "HUGGING_FACE_", "SSH_", "XDG_")
#: What a platform's tests need of a cache: nothing that was built for a GPU.
_WHEELS_OF_INTEREST = ("base-*", "build-*", "uv-*", "llama/cpu-*")


def begin() -> None:
    """Make the folder, and an environment that leads there."""
    made = Path(tempfile.mkdtemp(prefix="rbee-run-", dir="/tmp"))  # short: sockets come to lie below it
    home = Path.home()
    wheels = os.environ.get("RBEE_WHEEL_CACHE") or str(home / ".cache/rbee/wheels")
    for name in [name for name in os.environ if name.startswith(_PRIVATE)]:
        del os.environ[name]
    for name in ("home", "runtime"):
        (made / name).mkdir(mode=0o700)
    os.environ |= {_FOLDER: str(made), _WHEELS: wheels, "RBEE_LINK": "off", "RBEE_WHEEL_INDEX": "off"}
    os.environ |= {"HOME": str(made / "home"), "XDG_RUNTIME_DIR": str(made / "runtime")}
    os.environ |= {"RBEE_WHEEL_CACHE": str(made / "wheels"), "PIP_CACHE_DIR": str(made / "pip")}
    os.environ["RUSTUP_HOME"] = str(made / "rustup")  # pip runs `rustc --version`, and rustup writes there
    os.environ["PATH"] = without_shims(os.environ["PATH"])
    _keep_settings(home)


def without_shims(path: str) -> str:
    """Without the stand-ins of a version manager, which ask it each time which Python is meant: a tenth of a second for
    each of the names that a node is looked through for. The one that runs the tests is there by itself."""
    folders = path.split(os.pathsep)
    kept = [folder for folder in folders if Path(folder).name != "shims"]
    return path if kept == folders else os.pathsep.join([str(Path(sys.base_prefix, "bin")), *kept])


def end() -> None:
    shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)


@contextmanager
def kept_environment() -> Iterator[None]:
    """The environment is afterwards what it was, but for pytest's own variables."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() | before.keys():
            if os.environ.get(name) == before.get(name) or name.startswith("PYTEST_"):
                continue
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def folder() -> Path | None:
    """The folder of the run, None outside of one."""
    return Path(os.environ[_FOLDER]) if _FOLDER in os.environ else None


def user_wheels() -> Path:
    """The user's wheel cache, for reading."""
    return Path(os.environ[_WHEELS])


def wheels() -> Path:
    """The run's wheel cache, which has what the user's has."""
    made = folder()
    assert made is not None
    target = made / "wheels"
    with filelock.FileLock(made / "wheels.lock"):
        if not target.is_dir():
            part = made / "wheels.part"
            part.mkdir()
            for path in (path for pattern in _WHEELS_OF_INTEREST for path in user_wheels().glob(pattern)):
                shutil.copytree(path, part / path.relative_to(user_wheels()))
            part.rename(target)
    return target


def _keep_settings(home: Path) -> None:
    """Where the index and the container engine are, which are below a home as a rule, stays known."""
    for variable, *places in (
        ("PIP_CONFIG_FILE", ".pip/pip.conf", ".config/pip/pip.conf"),
        ("UV_CONFIG_FILE", ".config/uv/uv.toml"),
        ("DOCKER_CONFIG", ".docker"),
    ):
        for place in places:
            if (home / place).exists():
                os.environ.setdefault(variable, str(home / place))
