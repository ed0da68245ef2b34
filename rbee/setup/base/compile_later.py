"""Compiles what only some requests import: `python -I -c THIS MODULE…`, run on a node by the Python of its runtime.

Rules
- It has a session of its own, comes after everything else that the machine has to do, and is over in seconds.
- Its command line begins with the runtime's Python, by which a clean-up sees whose it is and an uninstall ends it.
- It makes no folder but `__pycache__` beside a source that is there, and ends when that is gone: by itself Python makes
  all folders on the way to what it compiled, and so would put back what somebody has just removed.
"""

import contextlib
import importlib
import os
import sys
from importlib.machinery import SourceFileLoader

#: The least urgent; what computes a first token meanwhile does not notice.
NICE = 19


def main(*modules: str) -> None:
    """One that cannot be imported is left out: requests that need it are told."""
    os.nice(NICE)
    SourceFileLoader.set_data = write  # type: ignore[assignment,method-assign]
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def write(_loader: SourceFileLoader, path: str, data: bytes, *, _mode: int = 0o600) -> None:
    """In place of `SourceFileLoader.set_data`: whole or not at all, as that."""
    folder = os.path.dirname(path)  # noqa: PTH120 - pathlib takes longer to import than some of what is compiled
    part = f"{path}.{os.getpid()}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _mode & 0o666), "wb") as file:  # noqa: PTH123
            file.write(data)
        os.replace(part, path)  # noqa: PTH105
    except FileNotFoundError:
        os._exit(0)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part)  # noqa: PTH108


if __name__ == "__main__":
    main(*sys.argv[1:])
