"""Makes the pack: what a machine without internet needs to build, run, test and measure rbee. `make gpu-pack`.

.gpu-pack/source.tar.xz     llama-cpp-python's locked sources, cut down
.gpu-pack/wheels/           all that is installed there, as the locks name it
.gpu-pack/venv.txt          what of it the environment of the steps holds; the rest is for nodes
.gpu-pack/sshd.tar.xz       an sshd with its libraries, for a machine that has none
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.source import cut_down
from rbee.setup.base import pip, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.base.requirements import Locked

ROOT = Path(__file__).parents[2]
PACK = ROOT / ".gpu-pack"
#: Bytes that the pack and the checkout may have together: what such a machine takes at once, less a reserve.
MOST_BYTES = 61_000_000
MOST_SOURCE_BYTES = 40_000_000
#: An Ubuntu 24.04, whose Python most images with CUDA have.
GLIBC = (2, 39)

#: Of the lock for development: what drives the steps and the tests marked `gpu`. The rest (peers of the gateway's
#: benchmarks, checkers) stays here.
_TESTS = frozenset(
    {
        *("docker", "hypothesis", "httpx", "iniconfig", "pluggy", "pytest", "pytest-asyncio", "pytest-timeout"),
        *("python-dotenv", "requests", "sortedcontainers", "testcontainers", "urllib3", "wrapt", "charset-normalizer"),
    }
)
#: Of the keeper's: what a node without a Python, and a download from the hub, would need.
_NOT_NEEDED = frozenset({"uv", "hf-xet"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.pack", description="Make the pack for a GPU machine.")
    parser.add_argument("--python", default="3.12", help="the Python of that machine [default: 3.12]")
    parser.add_argument("--with-cmake", action="store_true", help="for a machine without CMake; 30 MB")
    asked = parser.parse_args()
    major, minor = map(int, asked.python.split("."))
    target = replace(Target.here(), libc="glibc", libc_version=GLIBC, python=(major, minor))
    make(PACK, target, with_cmake=asked.with_cmake)
    size, checkout = folder_bytes(PACK), checkout_bytes(ROOT)
    print(f"{PACK.name}: {size / 1e6:.1f} MB, the checkout {checkout / 1e6:.1f} MB")
    if trouble := too_large(size, checkout, (PACK / "source.tar.xz").stat().st_size):
        sys.exit(trouble)


def make(pack: Path, target: Target, *, with_cmake: bool = False) -> None:
    """The pack for a platform and its Python, made anew."""
    shutil.rmtree(pack, ignore_errors=True)
    pack.mkdir()
    kept, for_nodes = chosen_lines(target, with_cmake=with_cmake)
    (pack / "venv.txt").write_text("".join(f"{line.line()}\n" for line in kept))
    asyncio.run(_fetch(pack, target, kept, for_nodes))
    _pack_sshd(pack / "sshd.tar.xz")


def chosen_lines(target: Target, *, with_cmake: bool = False) -> tuple[list[Locked], list[Locked]]:
    """What the environment of the steps holds, and what nodes and the build get; what both have is of one version."""
    for_nodes = requirements.for_runtime(target)
    tools = requirements.for_target(requirements.BUILD, target)
    tools = [line for line in tools if line.name not in {"cmake", "ninja"} or (with_cmake or line.name == "ninja")]
    own = {line.name: line for line in _for(requirements.keeper(), target) if line.name not in _NOT_NEEDED}
    dev = requirements.parse((ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8"))
    own |= {line.name: line for line in _for(dev, target) if line.name in _TESTS}
    own |= {line.name: line for line in [*tools, *for_nodes]}
    return sorted(own.values(), key=lambda line: line.name), for_nodes


def too_large(pack: int, checkout: int, source: int) -> str:
    """Why what travels is more than such a machine takes, "" where it is not. In bytes."""
    if source > MOST_SOURCE_BYTES:
        return f"the sources are {source / 1e6:.1f} MB, more than {MOST_SOURCE_BYTES / 1e6:.0f}"
    if pack + checkout > MOST_BYTES:
        return f"pack and checkout are {(pack + checkout) / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}"
    return ""


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def checkout_bytes(root: Path) -> int:
    """Of all files that git has, or would take."""
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    return sum((root / name).stat().st_size for name in names if name and (root / name).is_file())


def _for(lines: Sequence[Locked], target: Target) -> list[Locked]:
    from packaging.markers import Marker

    environment = target.markers()
    return [line for line in lines if not line.marker or Marker(line.marker).evaluate(environment)]


async def _fetch(pack: Path, target: Target, kept: Sequence[Locked], for_nodes: Sequence[Locked]) -> None:
    archive = await pip.fetch_locked(requirements.llama(), pack / "sdist", on_line=_hear)
    cut_down(archive, pack / "source.tar.xz")
    shutil.rmtree(pack / "sdist")
    lines = {line.line(): None for line in [*kept, *for_nodes]}
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", ".".join(map(str, target.python))]
    options += [word for platform in target.wheel_platforms() for word in ("--platform", platform)]
    await pip.download(list(lines), pack / "wheels", options=[*options, "--require-hashes"], on_line=_hear)


def _hear(_: str) -> None:
    """What pip says on its way is of no interest; its errors are raised."""


def _pack_sshd(target: Path) -> None:
    """This machine's, with the libraries that are not the C library's; none where it has none."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    if not sshd:
        return
    listed = subprocess.run(["ldd", sshd], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*(\S+) => (/\S+)", listed, re.MULTILINE)
    files = {name: path for name, path in found if not re.match(r"lib(c|m|dl|rt|pthread|resolv)\.so", name)}
    with tarfile.open(target, "w:xz", preset=6, dereference=True) as sink:
        for name, path in {"sshd": sshd, **files}.items():
            sink.add(path, name)


if __name__ == "__main__":
    main()
