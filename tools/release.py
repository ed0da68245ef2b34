"""Make a release of this commit in `dist/`: everything up to, and not including, the upload.

    make release                             unsigned
    make release RELEASE_KEY=~/.ssh/release  SHA256SUMS signed with that SSH key

First it is checked that this can be one: all that is wrong is said at once, a line for each. Then it builds the sdist,
the wheel from that, the one file with that wheel in it, SHA256SUMS, its signature, and NOTES.md from the changelog.
Two builds of one commit with one Python are the same bytes; the signature is, too, with an Ed25519 or RSA key.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

from rbee.base.files import file_sha256
from tools import locks

ROOT = Path(__file__).resolve().parents[1]
#: What the signature is for, so that none made for something else counts.
NAMESPACE = "rbee-release"
PROTOCOL = "remote/rbee_remote/protocol/__init__.py"
SUMS = "SHA256SUMS"
RUN_S = 120.0


def main() -> None:
    version = project_version(ROOT)
    found = [*of_the_checkout(ROOT, version), *of_the_changelog(ROOT, version)] or list(of_the_locks())
    if found:
        sys.exit("\n".join(f"release: {line}" for line in found))
    dist = ROOT / "dist"
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".release-") as work:
        files = build(Path(work), os.environ.get("DIST_PYTHON", ""))
        started(files[-1], version)
        signed = sums(files, os.environ.get("RELEASE_KEY", ""))
        (Path(work) / "NOTES.md").write_text(section(ROOT, version)[1] + "\n")
        shutil.rmtree(dist, ignore_errors=True)
        shutil.copytree(work, dist)
        dist.chmod(0o755)
    for path in sorted(dist.iterdir()):
        sys.stderr.write(f"release: {path.relative_to(ROOT)} ({path.stat().st_size:,} bytes)\n")
    todo = "uploaded" if f"v{version}" in _tags_here(ROOT) else "tagged and uploaded"
    sys.stderr.write(f"release: {version} is ready to be {todo}{signed}\n")


def project_version(root: Path) -> str:
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def of_the_checkout(root: Path, version: str) -> Iterator[str]:
    """What speaks against a release of `version` from here: changes, versions that differ, one that exists."""
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        yield f"commit or remove what is not committed: {', '.join(line[3:] for line in changed[:5])}"
    inside = re.search(r'^VERSION = "(.*)"$', (root / PROTOCOL).read_text(), re.MULTILINE)
    if not inside or inside[1] != version:
        yield f"pyproject.toml says {version}, {PROTOCOL} {inside and inside[1]}: set VERSION there"
    try:
        this = Version(version)
    except InvalidVersion:
        yield f"{version!r} in pyproject.toml is no version: write it as 1.2.3"
        return
    if _git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        yield "this clone lacks earlier commits, and so tags: git fetch --unshallow --tags"
        return
    tags = [tag for tag in _git(root, "tag", "--list", "v[0-9]*").split() if _is_version(tag)]
    last = max(tags, key=Version, default=None)
    if last and Version(last) > this:
        yield f"{last} is released, and pyproject.toml says {version}: raise the version"
    elif last and Version(last) == this and last not in _tags_here(root):
        yield f"{last} is released, from another commit: raise the version in pyproject.toml and {PROTOCOL}"


def of_the_changelog(root: Path, version: str) -> Iterator[str]:
    """What lacks in CHANGELOG.md, or is left over."""
    date, text = section(root, version)
    if not date and not text:
        yield f'CHANGELOG.md has no section "## {version} - YYYY-MM-DD": give "Unreleased" that heading'
        return
    if not re.search(r"^- ", text, re.MULTILINE):
        yield f"the section {version} of CHANGELOG.md is empty: say what a user notices"
    try:
        datetime.date.fromisoformat(date)
    except ValueError:
        yield f'the section {version} of CHANGELOG.md has no date: "## {version} - YYYY-MM-DD"'
    if re.search(r"^- ", section(root, "Unreleased")[1], re.MULTILINE):
        yield f'CHANGELOG.md has entries under "Unreleased", which this commit has: move them to {version}'


def section(root: Path, name: str) -> tuple[str, str]:
    """What stands behind a section's name, and the section itself without its heading; ("", "") where there is none."""
    heading, text = rf"^## \[?{re.escape(name)}\]?(?: - ([^\n]*))?$", (root / "CHANGELOG.md").read_text()
    found = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return (found[1] or "", found[2].strip()) if found else ("", "")


def of_the_locks() -> Iterator[str]:
    """Locks that would be made otherwise; asks the package index."""
    with tempfile.TemporaryDirectory() as folder:
        for words in locks.commands():
            try:
                changed = locks.differences(words, Path(folder))
            except locks.Unanswered as error:
                yield f"uv cannot say whether {words[-1]} is in step: {(str(error).splitlines() or ['?'])[-1].strip()}"
                continue
            if changed:
                yield f"{words[-1]} is not in step ({', '.join(changed[:5])}): the README beside it says how it is made"


def build(folder: Path, python: str = "", level: int = 9) -> list[Path]:
    """sdist, wheel and the one file. python: the program inside that, "" for the best here. level: of compression."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": _git(ROOT, "log", "-1", "--format=%ct").strip()}
    uv = str(Path(sys.executable).with_name("uv"))
    how = ["--quiet", "--offline", "--no-config", "--no-build-isolation", "--python", sys.executable]
    where = ["--no-create-gitignore", "--out-dir", str(folder), str(ROOT)]
    subprocess.run([uv, "build", *how, *where], check=True, env=env)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    which = ["--python", python] if python else []
    given = [*which, "--wheel", str(wheel), "--level", str(level), str(folder)]
    if subprocess.run([sys.executable, str(ROOT / "tools/one_file/build.py"), *given], check=False, env=env).returncode:
        sys.exit("release: the one file could not be built; why stands above")
    return [sdist, wheel, folder / f"rbee-linux-{platform.machine()}"]


def started(file: Path, version: str) -> None:
    """The one file is started once, from a cache of its own."""
    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        env = {"PATH": os.environ["PATH"], "HOME": cache, "RBEE_HOME": f"{cache}/rbee"}
        words = [str(file), "version", "--json"]
        ran = subprocess.run(words, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    if ran.returncode or f'"{version}"' not in ran.stdout:
        sys.exit(f"release: {file.name} does not start: {ran.stderr}{ran.stdout}")


def sums(files: list[Path], key: str) -> str:
    """Write SHA256SUMS beside `files`, and its signature by an SSH key. Returns what to say of it. key: "" for none."""
    target = files[0].with_name(SUMS)
    target.write_text("".join(f"{file_sha256(path)}  {path.name}\n" for path in sorted(files)))
    if not key:
        return f". {SUMS} is unsigned: RELEASE_KEY names an SSH key to sign with"
    words = ["ssh-keygen", "-Y", "sign", "-q", "-f", os.path.expanduser(key), "-n", NAMESPACE, str(target)]  # noqa: PTH111
    made = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"release: {key} cannot sign: {made.stderr.strip()}")
    return f", signed by {key}"


def _is_version(tag: str) -> bool:
    try:
        Version(tag)
    except InvalidVersion:
        return False
    return True


def _tags_here(root: Path) -> list[str]:
    return _git(root, "tag", "--points-at", "HEAD").split()


def _git(root: Path, *words: str) -> str:
    asked = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if asked.returncode:
        sys.exit(f"release: git {words[0]}: {asked.stderr.strip()}")
    return asked.stdout


if __name__ == "__main__":
    main()
