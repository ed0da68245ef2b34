"""How rbee is started again: by the words that its form needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rbee.base import installation
from tests.patience import PATIENCE_S


def asked(*options: str) -> list[str]:
    code = "from rbee.base import installation as i; print(i.one_file()); print(i.command()); print(i.python()[1:])"
    words = [sys.executable, *options, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout.splitlines()


def test_the_one_file_is_started_by_its_own_path() -> None:
    assert asked("-I", "-X", "rbee_file=/opt/my rbee") == ["/opt/my rbee", "['/opt/my rbee']", "['-I']"]


def test_an_installed_rbee_is_started_by_its_script() -> None:
    script = Path(sys.executable).with_name("rbee")
    assert asked() == ["None", f"['{script}']", "['-P']"]
    assert installation.unpacked() is None
