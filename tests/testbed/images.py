"""Images of nodes, made once per machine and kept under a tag that names their recipe.

The base is `debian:bookworm-slim` where a registry is in reach. Elsewhere `debootstrap` makes it from the mirror that
apt is set up with, which takes about a minute. It has to be root: who is not is so in a container.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import docker.errors
import filelock

from tests.testbed import assets, run

HERE = Path(__file__).parent
REPOSITORY = "rbee-testbed"
SUITE = "bookworm"
#: Folders that lead into /usr.
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
NODE_PACKAGES = ("openssh-server", "python3", "ca-certificates", "procps", "iproute2", "fish", "tcsh", "zsh")


class NoTestbed(Exception):
    """Why containers cannot be had here."""


def engine() -> docker.DockerClient:
    """A client of the container engine; raises NoTestbed where there is none."""
    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise NoTestbed(f"no container engine: {error}") from error
    return client


@functools.cache
def node_image() -> str:
    """Tag of the image with sshd and a Python without ensurepip, no compiler."""
    return _derived("node", "Dockerfile", base_image(NODE_PACKAGES))


@functools.cache
def nopython_image() -> str:
    return _derived("nopython", "Dockerfile.nopython", node_image())


@functools.cache
def venv_image() -> str:
    """As `node_image`, with what Ansible needs to make a virtual environment."""
    return _derived("venv", "Dockerfile", base_image((*NODE_PACKAGES, "python3-venv")))


def bootstrapped_image(bootstrap: Callable[[str, str], None]) -> str:
    """As `node_image`, with the runtime and the built-in model on it for user bee; no payload, no wheels, no logs.

    bootstrap: called with an image to start a node of, and the tag under which the node is to be kept.
    """
    locks = (HERE.parents[1] / "remote/requirements").glob("*.txt")
    parts = [*(path.read_text() for path in sorted(locks)), assets.MODEL_SHA256]
    tag = f"{REPOSITORY}:bootstrapped-{_digest(node_image(), *parts)}"
    with _making(tag) as client:
        if not _is_there(client, tag):
            bootstrap(node_image(), tag)
    return tag


def base_image(packages: tuple[str, ...]) -> str:
    """Tag of a bookworm with `packages` and nothing of ours. Raises NoTestbed with the reason why it cannot be made."""
    tag = f"{REPOSITORY}:base-{_digest(SUITE, *packages)}"
    with _making(tag) as client:
        if _is_there(client, tag):
            return tag
        try:
            client.images.pull("debian", tag=f"{SUITE}-slim")
        except docker.errors.APIError:
            _debootstrap(packages, tag)
        else:
            install = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"
            recipe = f"FROM debian:{SUITE}-slim\nRUN {install} && rm -rf /var/lib/apt/lists/*\n"
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "Dockerfile").write_text(recipe)
                client.images.build(path=folder, tag=tag, rm=True)
    return tag


def _derived(name: str, dockerfile: str, base: str) -> str:
    recipe = [(HERE / file).read_text() for file in (dockerfile, "node-entry")]
    tag = f"{REPOSITORY}:{name}-{_digest(base, *recipe)}"
    with _making(tag) as client:
        if not _is_there(client, tag):
            client.images.build(path=str(HERE), dockerfile=dockerfile, buildargs={"BASE": base}, tag=tag, rm=True)
    return tag


_DEBOOTSTRAP = """
root=$1 packages=$2 suite=$3 mirror=$4
export PATH="$PATH:/usr/sbin:/sbin"
debootstrap --variant=minbase "--include=$packages" "$suite" "$root" "$mirror" >&2 || exit
rm -rf "$root/var/cache/apt/archives"
tar -C "$root" -c .
"""


def _debootstrap(packages: tuple[str, ...], tag: str) -> None:
    if shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        raise NoTestbed("debian:bookworm-slim cannot be pulled, and debootstrap is not installed")
    with tempfile.TemporaryDirectory(prefix="rbee-testbed-") as folder:
        root, words = f"{folder}/root", []
        if os.geteuid() != 0:
            root, words = "/node", _as_root(Path(folder))
        words += ["sh", "-c", _DEBOOTSTRAP, "sh", root, ",".join(packages), SUITE, mirror()]
        with Path(folder, "said").open("w+b") as said:
            made = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said)
            taken = subprocess.run(["docker", "import", "-", tag], stdin=made.stdout, capture_output=True, check=False)
            assert made.stdout is not None
            made.stdout.close()
            if made.wait() or taken.returncode:
                said.seek(0)
                subprocess.run(["docker", "rmi", tag], capture_output=True, check=False)
                raise NoTestbed(f"debootstrap failed: {said.read()[-500:]!r} {taken.stderr[-500:]!r}")


def _as_root(folder: Path) -> list[str]:
    """What runs a command of this machine as root: a container that has nothing but this machine's programs."""
    tag = f"{REPOSITORY}:this-machine"
    image = folder / "image"
    for name in ("usr", "etc", "tmp", "proc", "sys", "dev", "root", "var/tmp"):
        (image / name).mkdir(parents=True)
    for link in (path for path in Path("/").iterdir() if path.is_symlink() and path.name in _LINKS):
        (image / link.name).symlink_to(link.readlink())
    tar = subprocess.run(["tar", "-C", str(image), "-c", "."], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["docker", "import", "-", tag], input=tar, stdout=subprocess.DEVNULL, check=True)
    return ["docker", "run", "--rm", "--network=host", "--volume=/usr:/usr:ro", "--volume=/etc:/etc:ro", tag]


def mirror() -> str:
    """The Debian mirror that this machine's apt uses, else Debian's own."""
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in lists if path.is_file())
    found = re.search(r"^(?:deb(?: \[[^]]*\])?|URIs:) +(https?://\S+/debian/?)(?:\s|$)", text, re.MULTILINE)
    return found[1] if found else DEFAULT_MIRROR


@contextlib.contextmanager
def _making(tag: str) -> Iterator[docker.DockerClient]:
    """An engine's client, for one process at a time that may make the image."""
    folder = (run.folder() or assets.cache_folder()) / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"{tag.replace(':', '-')}.lock"), contextlib.closing(engine()) as client:
        yield client


def _is_there(client: docker.DockerClient, tag: str) -> bool:
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        return False
    return True


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
