"""Who else could change a folder: the rule in Python, for the hive, and in sh, for the probe, say the same."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rbee.node.probe import parse, script
from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system.layout import Layout
from rbee_remote.system.strict_modes import unsafe_because


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as folder:
        yield Path(folder)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def by_probe(home: Path) -> str:
    """What the probe says of a home."""
    env = {"HOME": str(home.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["/bin/sh"], input=script(str(home)).encode(), capture_output=True, env=env, check=True)
    return parse(done.stdout).home_problem


def plain(base: Path) -> Path:
    return base / "rbee"


def below_a_shared_one(base: Path) -> Path:
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    return base / "open" / "deep" / "rbee"


def open_itself(base: Path) -> Path:
    (base / "rbee").mkdir()
    (base / "rbee").chmod(0o777)
    return base / "rbee"


def sticky_itself(base: Path) -> Path:
    (base / "rbee").mkdir()
    (base / "rbee").chmod(0o1777)
    return base / "rbee"


def below_a_sticky_one(base: Path) -> Path:
    (base / "tmp").mkdir()
    (base / "tmp").chmod(0o1777)
    return base / "tmp" / "a -> b" / "rbee"


def of_a_private_group(base: Path) -> Path:
    (base / "group").mkdir()
    (base / "group").chmod(0o775)
    return base / "group" / "rbee"


def of_a_common_group(base: Path) -> Path:
    (base / "group").mkdir()
    os.chown(base / "group", -1, 12345)
    (base / "group").chmod(0o775)
    return base / "group" / "rbee"


def of_somebody_else(base: Path) -> Path:
    (base / "theirs").mkdir()
    os.chown(base / "theirs", 12345, -1)
    return base / "theirs" / "rbee"


def behind_links(base: Path) -> Path:
    """Safe itself, and where it leads to is not: by way of a second link, with `..` in it."""
    below_a_shared_one(base)
    (base / "one").symlink_to("two")
    (base / "two").symlink_to("open/../open")
    return base / "one" / "rbee"


def behind_a_link_of_somebody_else(base: Path) -> Path:
    (base / "real").mkdir()
    (base / "link").symlink_to("real")
    os.chown(base / "link", 12345, -1, follow_symlinks=False)
    return base / "link" / "rbee"


def behind_a_link_of_ones_own(base: Path) -> Path:
    (base / "real").mkdir()
    (base / "link").symlink_to(base / "real")
    return base / "link" / "rbee"


CASES = [
    (plain, ""),
    (below_a_sticky_one, ""),
    (behind_a_link_of_ones_own, ""),
    (below_a_shared_one, "{}/open can be changed by others: chmod go-w {}/open"),
    (open_itself, "{}/rbee can be changed by others: chmod go-w {}/rbee"),
    (sticky_itself, "{}/rbee can be changed by others: chmod go-w {}/rbee"),
    (behind_links, "{}/open can be changed by others: chmod go-w {}/open"),
    pytest.param(of_a_private_group, "", marks=as_root),
    pytest.param(of_a_common_group, "{}/group can be changed by others: chmod go-w {}/group", marks=as_root),
    pytest.param(of_somebody_else, "{}/theirs belongs to somebody else", marks=as_root),
    pytest.param(behind_a_link_of_somebody_else, "{}/link belongs to somebody else", marks=as_root),
]


@pytest.mark.parametrize(("make", "problem"), CASES)
def test_both_say_the_same(make: Callable[[Path], Path], problem: str, short: Path) -> None:
    home = make(short)
    assert (unsafe_because(home), by_probe(home)) == (problem.replace("{}", str(short)),) * 2


@pytest.mark.parametrize(("make", "problem"), CASES)
def test_a_hive_makes_its_folders_only_where_they_are_safe(
    make: Callable[[Path], Path], problem: str, short: Path
) -> None:
    place = make(short)
    for layout in (Layout(place, short / "run" / "x"), Layout(short / "home", place)):
        if not problem:
            layout.prepare()
            assert {path.stat().st_mode & 0o777 for path in (layout.home, layout.logs, layout.run_dir)} == {0o700}
            continue
        with pytest.raises(RemoteError) as caught:
            layout.prepare()
        assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
        assert problem.replace("{}", str(short)) in caught.value.message


def test_a_link_in_place_of_the_folder_for_sockets_is_refused(short: Path) -> None:
    (short / "elsewhere").mkdir()
    (short / "run").symlink_to("elsewhere")
    with pytest.raises(RemoteError, match="symbolic link"):
        Layout(short / "home", short / "run").prepare()


def test_a_ring_of_links_leads_nowhere(short: Path) -> None:
    (short / "a").symlink_to("b")
    (short / "b").symlink_to("a")
    assert (unsafe_because(short / "a" / "rbee"), by_probe(short / "a" / "rbee")) == ("", "")
    with pytest.raises(RemoteError, match="cannot make a folder"):
        Layout(short / "a" / "rbee", short / "run").prepare()
