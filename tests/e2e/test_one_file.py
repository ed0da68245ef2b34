"""The one file, in a container without Python, of an ordinary user whose cache is noexec: the main job over SSH.

The node has no Python either, and neither has a way to the internet."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shlex
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rbee.setup.base.platforms import Target
from rbee.setup.wheels.cache import WheelCache
from rbee_remote.protocol import VERSION
from tests.testbed import assets, images
from tests.testbed.node import ContainerNode
from tools import release

pytestmark = [pytest.mark.container, pytest.mark.model]

QUESTION = "Why is the sky blue?"
#: Of the user `bee`, the first of the image that has a number.
HOME = "/home/bee"


@pytest.fixture(scope="session")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a release of this checkout would have, with the Python that runs the tests, and less compressed."""
    files = release.build(tmp_path_factory.mktemp("dist"), sys.executable, level=1)
    return files[-1]


@dataclass
class Keeper:
    """A machine with the one file, and what else somebody would have there: wheels, the model, a key, an inventory."""

    machine: ContainerNode

    def __call__(self, line: str, *, status: int = 0) -> str:
        """stdout of `rbee LINE`, typed by the user."""
        script = f"cd; RBEE_WHEEL_CACHE={HOME}/wheels ./rbee {line} 2>{HOME}/stderr </dev/null"
        found, said = self.machine.try_exec(f"export HOME={HOME}; {script}", user="bee")
        assert found == status, f"{line}: {said}{self.stderr()}"
        return said

    def stderr(self) -> str:
        return self.machine.exec(f"cat {HOME}/stderr")

    def give(self, files: dict[str, Path | str]) -> None:
        """Put files and folders below the user's home, the user's alone."""
        user = int(self.machine.exec("id -u bee"))

        def own(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.uid = entry.gid = user
            entry.mode &= 0o700
            return entry

        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", dereference=True) as archive:
            for name, content in files.items():
                if isinstance(content, Path):
                    archive.add(content, name, filter=own)
                else:
                    entry = own(tarfile.TarInfo(name))
                    entry.mode, entry.size = 0o600, len(content.encode())
                    archive.addfile(entry, io.BytesIO(content.encode()))
        packed.seek(0)
        self.machine.put_archive(HOME, packed)


def address(node: ContainerNode) -> str:
    """In the network of the containers."""
    return node.exec("hostname -I").split()[0]


def wheels() -> Path:
    """The run's cache, with what a node without Python gets of the keeper's."""
    cache = WheelCache(assets.wheel_cache(), Path("/nonexistent"))
    here = Target.here()
    assert cache.find_llama(here, "cpu"), "`make dev` builds it"
    asyncio.run(cache.base_wheels(Target(here.system, here.machine, "glibc", (2, 36), here.python), lambda _: None))
    return cache.root


def phases(said: str) -> list[int]:
    return [event["phase"] for event in map(json.loads, said.splitlines()) if event.get("event") == "phase"]


def test_the_main_job_without_python_at_either_end(
    one_file: Path, ssh_node: Callable[..., ContainerNode], key: Any, tmp_path: Path
) -> None:
    machine = ssh_node(
        name="keeper",
        image=images.nopython_image(),
        tmpfs={f"{HOME}/.cache": "mode=1777,size=1m,noexec"},
        processors=None,
    )
    node = ssh_node(image=images.nopython_image())
    keeper = Keeper(machine)
    store = tmp_path / "models"
    store.mkdir()
    assets.store_built_in_model(store)
    inventory = node.inventory(host=f'"{address(node)}"', port="22", identity_file=f'"{HOME}/key"')
    keeper.give({"rbee": one_file, "wheels": wheels(), "key": key.private})
    keeper.give({".rbee/inventory.toml": inventory, ".rbee/cache/models": store})
    machine.exec(f"chown -R bee {HOME}/.rbee && chmod 700 {HOME}/.rbee {HOME}/.rbee/cache")

    # ten at once, before it is unpacked
    ten = f"for n in 0 1 2 3 4 5 6 7 8 9; do ./rbee version >out$n 2>err$n & done; wait; grep -l 'rbee *{VERSION}' out?"
    assert len(machine.exec(f"cd; export HOME={HOME}; {ten}", user="bee").split()) == 10
    (said,) = machine.exec(f"cat {HOME}/err?").splitlines()
    uid = machine.exec("id -u bee").strip()
    assert said.startswith(f"rbee: unpacking to /var/tmp/rbee-app-{uid}, once")
    assert said.endswith(f"not to {HOME}/.cache/rbee-app: programs there cannot be run (noexec)")

    ask = f"infer --node gpu1 --json --max-tokens 8 --seed 1 {shlex.quote(QUESTION)}"
    assert phases(keeper(ask)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert phases(keeper(ask)) == [1, 8]
    assert keeper.stderr() == ""
    (python,) = node.files(f"{HOME}/.rbee/node/runtimes/python")[:1]
    assert python.startswith("rbee-3.")
    assert node.listening_tcp() == []

    # Ctrl-C at a terminal while it answers
    keys = "mkfifo keys; exec 3<>keys; (until [ -s said ]; do sleep 0.05; done; printf '\\3' >&3) >/dev/null 2>&1 &"
    typed = "script -qec 'exec ./rbee infer --node gpu1 --max-tokens 2000 Hello >said' /dev/null <&3"
    assert machine.try_exec(f"cd; export HOME={HOME}; {keys} {typed}", user="bee")[0] == 130

    # as cron does, with the line that it gives
    line = re.search(r"^\*/15 \* \* \* \* (.*/rbee gc.*)$", keeper("gc --install"), re.MULTILINE)
    assert line, keeper.stderr()
    machine.exec(f"cd / && env -i /bin/sh -c {shlex.quote(line[1])}", user="bee")
    keeper("audit verify")
    completion = f"cd; export HOME={HOME} _RBEE_COMPLETE=complete_bash COMP_WORDS='rbee inf' COMP_CWORD=1; ./rbee"
    assert machine.exec(completion, user="bee").split() == ["infer"]
    found = json.loads(keeper("self check --json"))
    assert (found["form"], found["file"], found["damaged"]) == ("one file", f"{HOME}/rbee", [])
    assert len(found["copies"]) == 1

    keeper("hive stop gpu1")
    node.assert_quiet()
    keeper("uninstall gpu1 --models --yes")
    assert node.files(f"{HOME}/.rbee") == []
    keeper("self clean --all")
    assert machine.exec(f"ls -A /var/tmp/rbee-app-{uid}").split() == [".lock"]
