"""From a bare container to the first token: wheels in the keeper's cache, the model on the node already.

Against an Ansible playbook that does the same by hand: copy the same wheels, make the venv, pip-install them, start a
server, ask it. The server is `playbook/serve.py`, as small as it can be, with the same llama.cpp.
"""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Comparison, command, compare, in_turn
from benchmarks.testbed import ansible_environment, ansible_folder, keeper, key_pair, node
from tests.testbed import assets, images
from tests.testbed.node import ContainerNode, KeyPair

PLAYBOOK = Path(__file__).parent / "playbook"
MODEL = "/home/bee/model.gguf"


def measure() -> list[Comparison]:
    with key_pair() as key, tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder, "wheels.tar")
        _collect_wheels(key, wheels)
        samples = in_turn({"ansible": _ansible(key, wheels), "rbee": lambda: _rbee(key)})
    return [compare("rbee infer on a bare node, to the first token", samples, "rbee", "ansible", goal=0.25)]


def _rbee(key: KeyPair) -> float:
    """Seconds from the start of the command to the first byte on stdout."""
    with keeper() as rbee, node(key) as target:
        _put_model(target)
        rbee.inventory.write_text(target.inventory())
        start = time.monotonic()
        with rbee.start("infer", "--node", "node", "--model", f"file:{MODEL}", "--max-tokens", "1", "Hello") as running:
            running.wait_for_pieces(1)
            return running.stdout[0][0] - start


def _ansible(key: KeyPair, wheels: Path) -> Callable[[], float]:
    def run() -> float:
        with node(key, image=images.venv_image()) as target, tempfile.TemporaryDirectory() as folder:
            _put_model(target)
            hosts = Path(folder, "hosts")
            hosts.write_text(
                f"node ansible_host={target.host} ansible_port={target.port} ansible_user={target.user} "
                f"ansible_ssh_private_key_file={key.private}\n"
            )
            variables = f"wheels={wheels} model={MODEL} serve={PLAYBOOK / 'serve.py'}"
            words = (ansible_folder() / "ansible-playbook", "-i", hosts, "-e", variables, PLAYBOOK / "cold.yml")
            playbook = command(*words, env=ansible_environment(Path(folder), pipelining=False))
            start = time.monotonic()
            playbook()
            return time.monotonic() - start

    return run


def _collect_wheels(key: KeyPair, target: Path) -> None:
    """A tar of the wheels that rbee puts on such a node, named by one where it did: the playbook gets the same.

    One archive, because Ansible takes a second for each file that it copies.
    """
    with keeper() as rbee, node(key) as source:
        _put_model(source)
        rbee.inventory.write_text(source.inventory())
        rbee("infer", "--node", "node", "--model", f"file:{MODEL}", "--max-tokens", "1", "Hello")
        installed = source.exec("find /home/bee/.rbee/node/runtimes -name '*.dist-info' -printf '%f\\n'").split()
        (python,) = source.exec("find /home/bee/.rbee/node/runtimes -name 'python3.*' -path '*/lib/*' -type d").split()
    wanted = {name.removesuffix(".dist-info").lower() for name in installed}
    tag = re.compile(rf"-(py3|py2\.py3|cp{python.rpartition('python')[2].replace('.', '')})-|-abi3-")
    found = {wheel.name: wheel for wheel in assets.wheel_cache().rglob("*.whl") if tag.search(wheel.name)}
    chosen = [path for name, path in found.items() if "-".join(name.split("-")[:2]).lower() in wanted]
    assert len(chosen) >= len(wanted), f"wheels missing for {wanted}"
    with tarfile.open(target, "w") as tar:
        for path in chosen:
            tar.add(path, path.name)


def _put_model(target: ContainerNode) -> None:
    """Past SSH and past the clock."""
    with tempfile.TemporaryFile() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(assets.model(), Path(MODEL).name)
        buffer.seek(os.SEEK_SET)
        target.put_archive(str(Path(MODEL).parent), buffer)
