"""What a shell on a node is told before it runs a program of rbee's home: look whose the way to it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee.transport.markers import checked
from rbee.transport.strict_modes import is_safe

SHELLS = [shell for shell in ("sh", "dash", "bash", "zsh") if shutil.which(shell)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / "real").mkdir(mode=0o700)
    return tmp_path


def run(shell: str, home: Path) -> tuple[int, str]:
    """What the program says that stands for one of the home: that it is ready, then the stdin that follows."""
    with subprocess.Popen([shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(checked(is_safe(str(home)), "sh -c 'echo ready; cat'"))
        process.stdin.flush()
        said = process.stdout.readline()
        if said:
            process.stdin.write(b"what follows\n")
        process.stdin.close()
        said += process.stdout.read()
    return process.returncode, said.decode()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_program_of_ones_own_home_runs_and_gets_what_follows(shell: str, base: Path) -> None:
    home = base / "it's $HOME `a` home"
    home.mkdir(mode=0o700)
    assert run(shell, home) == (0, "ready\nwhat follows\n")
    (base / "link").symlink_to(home)
    assert run(shell, base / "link") == (0, "ready\nwhat follows\n")


def others_write(base: Path) -> Path:
    (base / "real").chmod(0o777)
    return base / "real"


def others_write_what_leads_to_it(base: Path) -> Path:
    (base / "real" / "home").mkdir(mode=0o700)
    (base / "real").chmod(0o777)
    return base / "real" / "home"


def a_neighbours_link_to_it(base: Path) -> Path:
    """On a shared disk, where a folder was cleaned away: he can have it lead elsewhere the next moment."""
    shared = base / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "home").symlink_to(base / "real")
    os.chown(shared / "home", 12345, 12345, follow_symlinks=False)
    return shared / "home"


def gone(base: Path) -> Path:
    return base / "gone"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("make", [others_write, others_write_what_leads_to_it, a_neighbours_link_to_it, gone])
def test_nothing_runs_where_somebody_else_could_have_put_it(
    make: Callable[[Path], Path], shell: str, base: Path
) -> None:
    if make is a_neighbours_link_to_it and os.geteuid() != 0:
        pytest.skip("only root can make somebody else's link")
    assert run(shell, make(base)) == (127, "")
