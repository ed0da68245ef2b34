"""A package index in a folder, and locks that name what is in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rbee.setup.base import requirements
from tests.unit.setup.tiny_packages import lock_line, write_wheel


class PackageIndex:
    """folder: what pip finds. locks: what stands in for remote/requirements."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = root / "index"
        self.locks = root / "requirements"
        self.folder.mkdir(parents=True)
        self.locks.mkdir()
        for name in (requirements.UV, "cuda12.txt", "cuda13.txt"):
            shutil.copy(requirements.folder() / name, self.locks)
        self.lock(requirements.CONSTRAINTS)
        self.lock(requirements.BUILD, write_wheel(self.folder, "tool", {"tool.py": b""}))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.folder))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        for name in ("RBEE_WHEEL_CACHE", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(requirements, "folder", lambda: self.locks)

    def lock(self, name: str, *files: Path) -> None:
        """Write a lock that names these files."""
        (self.locks / name).write_text("".join(f"{lock_line(file)}\n" for file in files))

    def vanish(self) -> None:
        """From now on nothing can be fetched."""
        self.folder.rename(self.folder.with_name("gone"))
