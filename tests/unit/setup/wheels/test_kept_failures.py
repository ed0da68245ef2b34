"""A build that ended for want of disk or memory is gone on with; one that the compiler ended begins anew."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.setup.base import node_scripts
from rbee.setup.wheels import building, kept
from rbee_remote.protocol import ErrorCode

FULL = "/tmp/ccX.s: fatal error: error writing to -: No space left on device"
KILLED = "g++: fatal error: Killed signal terminated program cc1plus"


def _ended_with(log: Path, steps: int, *words: str, before: int = 0) -> NodeError:
    """As a build that printed this ends."""
    with building.BuildLog(log, lambda _: None) as build_log:
        for line in (
            f"going on: {before}",
            *(f"  [{step}/231] g++ -c x{step}.cpp" for step in range(1, steps + 1)),
            *words,
        ):
            build_log.hear(line)
        return build_log.failure("here")


def _broken_off(root: Path, error: BaseException, built_on: str = "", compiled: int = 0) -> tuple[Path, BaseException]:
    """The folder of a build that `error` ended, and what was raised. compiled: files that ninja notes."""
    root.mkdir(mode=0o700, exist_ok=True)
    folders = []
    try:
        with kept.build_folder(root, "-DX=ON", built_on) as folder:
            folders.append(folder)
            _compile(folder, compiled)
            raise error
    except BaseException as ended:
        return folders[0], ended


def _compile(folder: Path, files: int) -> None:
    (folder / "build" / "cmake").mkdir(parents=True)
    (folder / "build" / "made-with").touch()
    lines = [f"0\t1\t2\t{number}.o\tx" for number in range(files)]
    (folder / "build" / "cmake" / ".ninja_log").write_text("\n".join(["# ninja log v5", *lines]))


@pytest.mark.parametrize(
    ("steps", "before", "words", "stays"),
    [
        (60, 0, (FULL, "ninja: build stopped: subcommand failed."), True),
        (2, 90, (FULL,), True),
        (60, 0, ("collect2: error: ld: Disk quota exceeded",), True),
        (60, 0, (KILLED,), True),
        (60, 0, ("ninja: build stopped: interrupted by user.",), True),
        (3, 0, (FULL,), False),
        (60, 0, ("x.cpp:3:1: error: no such thing", "ninja: build stopped: subcommand failed."), False),
    ],
)
def test_what_the_compiler_did_not_refuse_is_gone_on_with(
    steps: int, before: int, words: tuple[str, ...], stays: bool, tmp_path: Path
) -> None:
    ended = _ended_with(tmp_path / "log", steps, *words, before=before)
    folder, raised = _broken_off(tmp_path / "cache", ended)
    assert folder.exists() is stays
    assert isinstance(raised, NodeError)
    assert (raised is ended) is not stays
    if stays:
        assert f"the {steps + before} files that are compiled are kept for 3 days" in raised.hint
        assert str(tmp_path / "log") in raised.hint
        assert raised.code is (ErrorCode.BOOTSTRAP_FAILED if "killed" in str(raised) else ErrorCode.DISK_FULL)


@pytest.mark.parametrize(("compiled", "stays"), [(60, True), (3, False)])
def test_a_disk_that_is_full_for_rbee_itself_counts_as_well(compiled: int, stays: bool, tmp_path: Path) -> None:
    for error in (NodeError(ErrorCode.DISK_FULL, "the disk is full"), OSError(28, "No space left on device")):
        folder, raised = _broken_off(tmp_path / error.__class__.__name__, error, compiled=compiled)
        assert folder.exists() is stays
        assert (raised is error) is not stays


def test_what_an_earlier_build_left_outlives_a_disk_without_room_for_the_next(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir(mode=0o700)
    with suppress(KeyboardInterrupt), kept.build_folder(root, "-DX=ON", "gpu1 key") as folder:
        name = kept.nonce(folder)
        raise KeyboardInterrupt
    _, raised = _broken_off(root, NodeError(ErrorCode.DISK_FULL, "gpu1 has no room"), "gpu1 key")
    assert isinstance(raised, NodeError)
    assert "broken off, the disk is full" in raised.message
    assert "what is compiled is kept for 3 days" in raised.hint
    with kept.build_folder(root, "-DX=ON", "gpu1 key") as again:
        assert kept.nonce(again) == name


def test_keeper_and_node_keep_a_build_for_the_same_time(tmp_path: Path) -> None:
    """By the script itself: one of two days stays on a node, where other leftovers go after one."""
    assert kept.OLDEST_S == node_scripts.BUILD_DAYS * 86400
    staging = node_scripts.staging_path(str(tmp_path), "build-0123456789ab")
    assert Path(staging).name.startswith(kept.PREFIX)
    ages = {Path(staging).name: 2, ".staging-build-old": 4, ".staging-other": 2, ".staging-young": 0}
    for name, days in ages.items():
        folder = tmp_path / "runtimes" / name
        folder.mkdir(parents=True)
        _age(folder, days)
    done = subprocess.run(["/bin/sh"], input=node_scripts.prepare(str(tmp_path)).encode(), check=True, timeout=60)
    assert done.returncode == 0
    left = {path.name for path in (tmp_path / "runtimes").glob(".staging-*")}
    assert left == {Path(staging).name, ".staging-young"}


def _age(folder: Path, days: int) -> None:
    then = time.time() - days * 86400 - 3600
    os.utime(folder, (then, then))
