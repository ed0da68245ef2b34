"""The head of the one file: unpacks what is behind it, once, and starts it. Real shells, files and file systems.

What is behind it here is a program of a few lines in place of Python and rbee: `tests/e2e/test_one_file.py` has those.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tools.one_file import build

#: Says how it was started, and ends with 7.
PROGRAM = """#!/bin/sh
printf '<%s>' "$@"
cat
exit 7
"""
ABOUT = {"version": "1.2.3", "machine": os.uname().machine, "glibc": "2.5"}


class OneFile:
    """The file at `path`, run by a user with a home in `folder`."""

    def __init__(self, folder: Path, **about: str) -> None:
        self.folder = folder
        self.path = folder / "rbee-linux"
        self.cache = folder / "cache" / "rbee-app"
        image = folder / "image"
        (image / "bin").mkdir(parents=True)
        (image / "about.json").write_text(json.dumps(ABOUT | about))
        (image / "bin" / "python").write_text(PROGRAM)
        (image / "bin" / "python").chmod(0o755)
        build.write(image, self.path)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(self.cache.parent), "HOME": str(self.folder)}

    def __call__(self, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path, *words],
            input=stdin,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def among(self, mounts: str) -> subprocess.CompletedProcess[str]:
        """Run it where file systems are mounted by this script; the shared folders for temporary files are empty."""
        script = (
            f"mount -t tmpfs none /var/tmp && mount --bind {self.folder} /mnt && mount -t tmpfs none /tmp && {mounts}"
        )
        run = f"{script} && XDG_CACHE_HOME=/mnt/cache exec /mnt/rbee-linux version"
        words = ["unshare", "--mount", "--map-root-user", "sh", "-ec", run]
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def left_over(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob(".*") if path.name != ".lock")


@pytest.fixture
def one_file(tmp_path: Path) -> OneFile:
    return OneFile(tmp_path)


@pytest.fixture
def mounting(one_file: OneFile) -> Iterator[OneFile]:
    if one_file.among("true").returncode != 7:
        pytest.skip("this user cannot mount anything")
    yield one_file
    shutil.rmtree(one_file.cache.parent, ignore_errors=True)


def test_it_is_unpacked_once_and_started_with_what_it_was_given(one_file: OneFile) -> None:
    words = ["infer", "two words", "", "*", "-x"]
    first, second = (one_file(*words, stdin="the prompt") for _ in range(2))
    assert first.returncode == second.returncode == 7
    expected = ["-I", "-X", f"rbee_file={one_file.path}", "-m", "rbee", *words]
    assert first.stdout == second.stdout == "".join(f"<{word}>" for word in expected) + "the prompt"
    assert first.stderr == f"rbee: unpacking to {one_file.cache}, once (0 MB)\n"
    assert second.stderr == ""
    (image,) = one_file.cache.glob("[0-9a-f]*")
    assert len(image.name) == 64
    assert image.stat().st_mode & 0o777 == one_file.cache.stat().st_mode & 0o777 == 0o700
    assert f"home = {image}/python/bin\n" in (image / "pyvenv.cfg").read_text()
    assert one_file.left_over() == []


def test_it_knows_itself_by_whatever_name_it_is_called(one_file: OneFile) -> None:
    (one_file.folder / "bin").mkdir()
    link = one_file.folder / "bin" / "rbee"
    link.symlink_to(one_file.path)
    for words, named in ((["rbee"], link), (["bin/rbee"], link), (["sh", "./rbee-linux"], one_file.path)):
        path = {"PATH": f"{link.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            words, env=one_file.environment | path, cwd=one_file.folder, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert f"rbee_file={named.parent}" in done.stdout.replace("/./", "/"), done


def test_without_a_home_it_is_the_one_of_the_user_database(one_file: OneFile) -> None:
    """As under `env -i`. Whatever that is, nothing is written there: the cache is named."""
    done = subprocess.run(
        ["env", "-i", f"XDG_CACHE_HOME={one_file.cache.parent}", one_file.path],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 7


def test_ten_that_start_at_once_unpack_it_once(one_file: OneFile) -> None:
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: one_file("version"), range(10)))
    assert [each.returncode for each in done] == [7] * 10
    assert sum("unpacking" in each.stderr for each in done) == 1
    assert len(list(one_file.cache.iterdir())) == 2  # with the lock
    assert one_file.left_over() == []


def test_ten_without_flock_do_not_get_into_each_others_way(one_file: OneFile) -> None:
    tools = one_file.folder / "tools"
    tools.mkdir()
    for name in ("uname", "getconf", "id", "tar", "gzip", "tail", "sha256sum", "mkdir", "mv", "rm", "chmod", "cat"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: one_file("version", PATH=str(tools)), range(10)))
    assert [each.returncode for each in done] == [7] * 10
    (image,) = one_file.cache.glob("[0-9a-f]*")
    assert sorted(path.name for path in image.iterdir()) == ["about.json", "bin", "pyvenv.cfg"]
    assert one_file.left_over() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whoever_is_ended_meanwhile_leaves_nothing_that_is_taken_for_whole(
    one_file: OneFile, number: signal.Signals
) -> None:
    tools, reached = one_file.folder / "tools", one_file.folder / "reached"
    tools.mkdir()
    (tools / "tar").write_text(f"#!/bin/sh\n>{reached}\nexec sleep 60\n")
    (tools / "tar").chmod(0o755)
    env = one_file.environment | {"PATH": f"{tools}:{os.environ['PATH']}"}
    with subprocess.Popen([one_file.path], env=env, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not reached.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, number)
        process.wait(PATIENCE_S)
    assert list(one_file.cache.glob("[0-9a-f]*")) == []
    assert one_file().returncode == 7
    assert one_file.left_over() == []


def test_a_damaged_file_is_not_unpacked(one_file: OneFile) -> None:
    with one_file.path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\0\0\0\0")
    done = one_file()
    assert done.returncode == 1
    assert done.stderr == (
        f"rbee: {one_file.path} is damaged: what is inside has another SHA-256. Copy or fetch it again\n"
    )
    assert not one_file.cache.exists()


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"glibc": "2.99"}, "needs glibc 2.99 or newer, and this system has 2."),
        ({"machine": "vax"}, "is for Linux on vax, and this is Linux "),
    ],
)
def test_a_system_where_it_cannot_run_is_told_in_one_line(tmp_path: Path, about: dict[str, str], words: str) -> None:
    done = OneFile(tmp_path, **about)()
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_c_library_that_is_no_glibc_is_told_in_one_line(one_file: OneFile) -> None:
    tools = one_file.folder / "tools"
    tools.mkdir()
    (tools / "getconf").write_text("#!/bin/sh\nexit 1\n")  # as on Alpine
    (tools / "getconf").chmod(0o755)
    done = one_file(PATH=f"{tools}:{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (
        1, "rbee: this file needs glibc 2.5, and this system has another C library\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        ("mkdir -p /mnt/cache && mount -t tmpfs -o noexec none /mnt/cache", "programs there cannot be run (noexec)"),
        ("mkdir -p /mnt/cache && mount -t tmpfs -o ro none /mnt/cache", "it cannot be made"),
        (
            "mkdir -p /mnt/cache/rbee-app && mount -t tmpfs -o ro,mode=700 none /mnt/cache/rbee-app",
            "it cannot be written",
        ),
        ("mkdir -p /mnt/cache && ln -s /root /mnt/cache/rbee-app", "it belongs to somebody else"),
    ],
)
def test_where_it_cannot_be_run_it_is_unpacked_elsewhere_and_says_so(mounting: OneFile, mounts: str, why: str) -> None:
    shutil.rmtree(mounting.cache.parent)
    done = mounting.among(mounts)
    assert done.returncode == 7
    assert "unpacking to /var/tmp/rbee-app-0, once" in done.stderr
    assert f"not to /mnt/cache/rbee-app: {why}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("filled_meanwhile", [False, True])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, filled_meanwhile: bool) -> None:
    image = tmp_path / "image"
    image.mkdir()
    (image / "large").write_bytes(os.urandom(4_000_000))
    full = OneFile(tmp_path)
    if full.among("true").returncode != 7:
        pytest.skip("this user cannot mount anything")
    shutil.rmtree(full.cache.parent)
    # df that knows of no lack when it is asked for the first time about a folder
    (tmp_path / "df").write_text(
        '#!/bin/sh\nasked=/mnt/asked$(echo "$2" | tr / -)\n'
        "printf 'x\\n/ 9 9 %s 9%% /\\n' $([ -e $asked ] && echo 0 || echo 99999)\n: >$asked\n"
    )
    (tmp_path / "df").chmod(0o755)
    lying = "PATH=/mnt:$PATH" if filled_meanwhile else "true"
    small = "-t tmpfs -o size=1m none"
    mounts = f"mkdir /mnt/cache && mount {small} /mnt/cache && mount {small} /var/tmp"
    done = full.among(f"{mounts} && mount {small} /tmp && {lying}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "rbee: there is no folder to unpack to: /mnt/cache/rbee-app: it needs"
    )
    assert done.stderr.count("\n") == (4 if filled_meanwhile else 1)
    assert "MB, and its disk is full; /var/tmp/rbee-app-0: it needs" in done.stderr
    assert "tar" not in done.stderr.splitlines()[-1].replace("start", "")
    assert not (full.cache.parent / "rbee-app").exists()
