"""Makes a runtime on a node: `python -I -c THIS STAGED FINAL PACKAGES LLAMA LATER [SHA256 FILE]…`. Run there, by the
Python that the runtime is made from, so it imports the standard library alone, and works with Python 3.10.

Rules
- What is unpacked has the SHA-256 that the keeper named, whoever wrote to the node's folder in between.
- A runtime gets its name once PACKAGES and LLAMA, two programs, have imported all that the first token needs; that also
  compiles it.
- LATER, a program, imports what some requests need besides. It is compiled meanwhile, since a worker in its sandbox
  writes nothing here: it would compile that in front of everybody's next token, and each worker again.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import IO

#: Bytes that are read at once.
PIECE = 2**20
#: The exit status where llama.cpp does not start, and all else does.
LLAMA_FAILS = 3


class Environment(venv.EnvBuilder):
    """A virtual environment that nobody activates."""

    def setup_scripts(self, context: SimpleNamespace) -> None:
        """There are none."""


def main(staged: Path, final: Path, packages: str, llama: str, later: str, *files: str) -> None:
    """files: of each its SHA-256 and its path: a wheel, or a tar archive of wheels. Ends with a message on stderr."""
    Environment(symlinks=True).create(staged)
    site = staged / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    for sha256, path in zip(files[::2], files[1::2]):  # noqa: B905 - as many of the one as of the other
        unpack(Path(path), sha256, site)
    imports = f"{packages}\n{llama}"
    with subprocess.Popen([staged / "bin" / "python", "-I", "-c", later], stderr=subprocess.DEVNULL):
        working = works(staged, imports)
    if not working:
        raise SystemExit(LLAMA_FAILS if works(staged, packages, silent=True) else 1)
    put_in_place(staged, final, imports)


def unpack(path: Path, sha256: str, site: Path) -> None:
    """What is unpacked is what was hashed: both read the one open file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(PIECE):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise SystemExit(f"{path} has another SHA-256 than it should have")
        file.seek(0)
        if path.suffix == ".whl":
            install(file, site)
            return
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
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
        archive.extractall(site, [name for name in names if "/tests/" not in name and not name.endswith(".pyi")])  # noqa: S202


def works(runtime: Path, imports: str, *, silent: bool = False) -> bool:
    """Whether the program `imports` succeeds there."""
    python = runtime / "bin" / "python"
    stderr = subprocess.DEVNULL if silent else None
    status = subprocess.call([python, "-I", "-c", imports], stderr=stderr) if python.exists() else 1
    if status < 0 and not silent:
        sys.stderr.write(f"what the first token needs was ended by signal {-status}\n")
    return status == 0


def put_in_place(staged: Path, final: Path, imports: str) -> None:
    """A folder of that name means that another bootstrap was first, whose runtime is as good as ours; or that there is
    what somebody half deleted, which goes with the staging folder; at once where it cannot be moved there (overlayfs).
    """
    try:
        staged.rename(final)
    except OSError:
        if works(final, imports, silent=True):
            return
        try:
            final.rename(f"{staged}.damaged")
        except OSError:
            shutil.rmtree(final)
        staged.rename(final)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
