"""Makes a runtime on a node: `python -I -c THIS STAGED FINAL PACKAGES LLAMA LATER [SHA256 FILE]…`. Run there, by the
Python that the runtime is made from, so it imports the standard library alone, and works with Python 3.10.

Rules
- What is unpacked has the SHA-256 that the keeper named, whoever wrote to the node's folder in between.
- CUDA's libraries, which are hundreds of megabytes, lie in `libraries/SHA256` of each runtime that has them: the same
  files, where the file system links them.
- A runtime gets its name once PACKAGES and LLAMA, two programs, have imported all that the first token needs; that also
  compiles it.
- LATER, the words of a Python that compiles what some requests import besides, begins once the runtime has its name,
  and nobody waits for it. A worker in its sandbox writes nothing here: each would compile that again, in front of
  somebody's next token.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import traceback
import venv
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

#: Bytes that are read at once.
PIECE = 2**20
#: What llama.cpp's library for CUDA loads, as NVIDIA's wheels have it.
LIBRARY = re.compile(r"nvidia/.+/lib(?:cudart|cublas|cublasLt)\.so\.[0-9]+")
#: The exit status where llama.cpp does not start, and all else does.
LLAMA_FAILS = 3
#: A file, and which of its wheels: a name in an archive, "" for the file itself.
Wheel = tuple[Path, str]


class Environment(venv.EnvBuilder):
    """A virtual environment that nobody activates."""

    def setup_scripts(self, context: SimpleNamespace) -> None:
        """There are none."""


def main(
    staged: Path, final: Path, packages: str, llama: str, later: str, *words: str
) -> subprocess.Popen[bytes] | None:
    """later: JSON. words: of each file its SHA-256 and its path: a wheel, or a tar archive of wheels.

    Returns what compiles on. Ends with a message on stderr.
    """
    Environment(symlinks=True).create(staged)
    site = staged / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    files = [(Path(path), sha256) for sha256, path in zip(words[::2], words[1::2])]  # noqa: B905 - as many of each
    unpack_all([file for file in files if not is_of_cuda(file[0])], site)
    for path, sha256 in filter(lambda file: is_of_cuda(file[0]), files):
        bring_libraries(path, sha256, staged / "libraries" / sha256, final.parent)
    check(staged, packages, llama)
    return compile_later(final, json.loads(later)) if put_in_place(staged, final, (packages, llama)) else None


def unpack_all(files: Sequence[tuple[Path, str]], site: Path) -> None:
    """By two processes, since most of it is inflating and the names of small files. files: each with its SHA-256."""
    ours, theirs = halves([(size, (path, name)) for path, _ in files for name, size in wheels_of(path)])
    child = os.fork()
    if not child:
        os._exit(unpack_as_child(files, theirs, site))
    try:
        unpack_these(files, ours, site)
    finally:
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise SystemExit(f"unpacking was ended by signal {os.WTERMSIG(status)}")
    if status:
        raise SystemExit(1)  # it has said why


def wheels_of(path: Path) -> Iterator[tuple[str, int]]:
    """Each wheel of a file and how large it is. What stands there is believed for the division of labour alone."""
    if path.suffix == ".whl":
        yield "", path.stat().st_size
        return
    with tarfile.open(path) as archive:
        yield from ((member.name, member.size) for member in archive)


def halves(wheels: Sequence[tuple[int, Wheel]]) -> tuple[set[Wheel], set[Wheel]]:
    """As equal as the largest allows: each in turn, the largest first, goes where less is."""
    sizes = [0, 0]
    parts: tuple[set[Wheel], set[Wheel]] = (set(), set())
    for size, wheel in sorted(wheels, reverse=True):
        less = sizes.index(min(sizes))
        sizes[less] += size
        parts[less].add(wheel)
    return parts


def unpack_as_child(files: Sequence[tuple[Path, str]], wheels: Collection[Wheel], site: Path) -> int:
    """The exit status; what went wrong is on stderr."""
    try:
        unpack_these(files, wheels, site)
    except SystemExit as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0


def unpack_these(files: Sequence[tuple[Path, str]], wheels: Collection[Wheel], site: Path) -> None:
    """Those of the files' wheels that are named."""
    for path, sha256 in files:
        if wanted := {name for file, name in wheels if file == path}:
            unpack(path, sha256, site, wanted)


@contextlib.contextmanager
def checked(path: Path, sha256: str) -> Iterator[IO[bytes]]:
    """The file, open, once it was hashed: what is read of it is what was hashed."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(PIECE):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise SystemExit(f"{path} has another SHA-256 than it should have")
        file.seek(0)
        yield file


def unpack(path: Path, sha256: str, site: Path, wanted: Collection[str]) -> None:
    """wanted: of an archive's wheels."""
    with checked(path, sha256) as file:
        if path.suffix == ".whl":
            install(file, site)
            return
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                if member.name in wanted:
                    wheel = archive.extractfile(member)
                    assert wheel is not None
                    install(wheel, site)


def install(wheel: IO[bytes], site: Path) -> None:
    """Of wheels that have nothing for other folders than site-packages, as those of the locks: they are only unpacked,
    and their programs, which nobody starts, are not made. Nor are the packages' own tests, a third of the files."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        if elsewhere := [name for name in names if name.partition("/")[0].endswith(".data")]:
            raise SystemExit(f"{elsewhere[0]} belongs elsewhere than in site-packages")
        wanted = [name for name in names if "/tests/" not in name and not name.endswith(".pyi")]
        for folder in sorted({name.rpartition("/")[0] for name in wanted}):  # zipfile fails where the other is quicker
            (site / folder).mkdir(parents=True, exist_ok=True)
        archive.extractall(site, wanted)  # noqa: S202


def is_of_cuda(path: Path) -> bool:
    """Whether it is a wheel of NVIDIA's, of which nothing is Python."""
    return path.name.startswith("nvidia_")


def bring_libraries(wheel: Path, sha256: str, folder: Path, runtimes: Path) -> None:
    """Those of another runtime, whatever has become of the wheel since then; else out of the wheel."""
    folder.parent.mkdir(exist_ok=True)
    for other in runtimes.glob(f"[0-9a-f]*/libraries/{sha256}"):
        with contextlib.suppress(OSError):
            shutil.copytree(other, folder, copy_function=os.link)
            return
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with checked(wheel, sha256) as file, zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if LIBRARY.fullmatch(name):
                with archive.open(name) as packed, (folder / name.rpartition("/")[2]).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, PIECE)


def check(runtime: Path, packages: str, llama: str) -> None:
    """Both at once: each compiles what it imports. Ends with LLAMA_FAILS where that alone does not work."""
    with starting(runtime, packages) as first, starting(runtime, llama) as second:
        statuses = first.wait(), second.wait()
    for status in statuses:
        if status < 0:
            sys.stderr.write(f"what the first token needs was ended by signal {-status}\n")
    if any(statuses):
        raise SystemExit(1 if statuses[0] else LLAMA_FAILS)


def starting(runtime: Path, program: str, *, silent: bool = False) -> subprocess.Popen[bytes]:
    stderr = subprocess.DEVNULL if silent else None
    return subprocess.Popen([runtime / "bin" / "python", "-I", "-c", program], stderr=stderr)


def works(runtime: Path, programs: Sequence[str]) -> bool:
    """Whether all of them succeed there."""
    if not (runtime / "bin" / "python").exists():
        return False
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(starting(runtime, program, silent=True)) for program in programs]
    return not any(process.returncode for process in started)


def put_in_place(staged: Path, final: Path, programs: Sequence[str]) -> bool:
    """Whether it is ours that has the name. A folder of that name means that another bootstrap was first, whose
    runtime is as good as ours; or that there is what somebody half deleted, which goes with the staging folder; at once
    where it cannot be moved there (overlayfs).
    """
    try:
        staged.rename(final)
    except OSError:
        if works(final, programs):
            return False
        try:
            final.rename(f"{staged}.damaged")
        except OSError:
            shutil.rmtree(final)
        staged.rename(final)
    return True


def compile_later(runtime: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: neither this process nor its channel waits for it."""
    python, nothing = runtime / "bin" / "python", subprocess.DEVNULL
    return subprocess.Popen(
        [python, *words], stdin=nothing, stdout=nothing, stderr=nothing, cwd="/", start_new_session=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
