"""Nodes in containers with one image, which a keeper has set up, and a gateway before them."""

from __future__ import annotations

import hashlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docker

from benchmarks.gateway import gateway
from benchmarks.testbed import keeper, key_pair, node, ssh
from tests.testbed import assets
from tests.testbed.cli import Rbee
from tests.testbed.node import PROCESSORS, ContainerNode, KeyPair, start_node, wait_until

MODEL = "smollm2:135m"
IMAGE, IMAGE_WITH_MODELS = "rbee-bench-node:warm", "rbee-bench-node:models"
#: Of the nodes' models.
FOLDER = "/home/bee/.rbee/node/models"
START_S = 120.0
GATEWAY = Path(__file__).with_name("watched_gateway.py")
#: What the model's system prompt calls the assistant, and what comes after it there.
_CALLED, _AFTER = b"SmolLM", b", trained by Hugging Face"


#: On a node: a copy of the built-in model, and its record in the catalog.
_COPY = """
import sys
from dataclasses import replace
from pathlib import Path
from rbee_remote.hive.models.catalog import Catalog

called, ref, sha256, model, text, word = sys.argv[1:]
catalog = Catalog(Path.cwd() / "models")
first = catalog.find(model)
path = catalog.blob(sha256)
path.write_bytes(Path(first.path).read_bytes().replace(text.encode(), text.replace(word, called).encode()))
catalog.add(replace(first, model=ref, path=str(path), sha256=sha256))
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that runs, at `address`, an URL without a path. nodes: by name, each with its workers loaded."""

    rbee: Rbee
    nodes: dict[str, ContainerNode]
    address: str
    process: subprocess.Popen[bytes]

    def tasks(self) -> list[str]:
        """The coroutines of the gateway's tasks."""
        told = _told(self.rbee.home)
        told.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(told.exists, START_S, lambda: "the gateway does not say which tasks it has")
        return told.read_text().splitlines()


class _Watched(Rbee):
    def _command(self, args: tuple[str, ...]) -> list[str]:
        return [sys.executable, str(GATEWAY), str(_told(self.home)), *args]


def _told(home: Path) -> Path:
    return home.parent / "tasks"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is asked for by `name`. only: the node that alone has it, "" for all. options: of its alias.

    called: six letters that stand for "SmolLM" in the system prompt of a copy of the built-in model, which is a model
    with another SHA-256 for that, and answers otherwise; "" for the built-in one.
    """

    name: str
    called: str = ""
    only: str = ""
    options: str = ""

    def table(self) -> str:
        where = f'nodes = ["{self.only}"]\n' if self.only else ""
        return f'[models.{self.name}]\nmodel = "{self.ref()}"\nkeep_alive = "never"\n{where}{self.options}\n'

    def ref(self) -> str:
        """What `rbee models push` would make of it on a node of the testbed."""
        if not self.called:
            return MODEL
        return f"file:{FOLDER}/{self.sha256()}.gguf"

    def sha256(self) -> str:
        return _sha256(self.called) if self.called else assets.MODEL_SHA256


@cache
def _sha256(called: str) -> str:
    content = assets.model().read_bytes()
    assert len(called) == len(_CALLED)
    assert content.count(_CALLED + _AFTER) == 1
    return hashlib.sha256(content.replace(_CALLED + _AFTER, called.encode() + _AFTER)).hexdigest()


@contextmanager
def served(count: int, *load: str) -> Iterator[Served]:
    """A gateway before `count` nodes. load: options of `infer` for each one's worker."""
    with key_pair() as key, keeper() as rbee, ExitStack() as stack:
        _make_image(rbee, key, IMAGE, ())
        nodes = _start(stack, key, IMAGE, count, None)
        rbee.inventory.write_text("\n".join(each.inventory(tags='["far"]') for each in nodes.values()))
        for name in nodes:
            rbee("infer", "--node", name, "--keep-alive", "never", "--max-tokens", "1", *load, "Hello")
        running = stack.enter_context(gateway(_Watched(rbee.home, rbee.run_dir, rbee.env), "@far"))
        yield Served(rbee, nodes, running.address, running.process)


@contextmanager
def served_models(count: int, models: Sequence[Model]) -> Iterator[Served]:
    """A gateway before `count` nodes with one processor each, n0, n1, …, and models on them that are loaded."""
    with key_pair() as key, keeper() as rbee, ExitStack() as stack:
        _make_image(rbee, key, IMAGE_WITH_MODELS, [model for model in models if not model.only])
        nodes = _start(stack, key, IMAGE_WITH_MODELS, count, PROCESSORS)
        rbee.inventory.write_text(inventory(nodes.values(), models))
        for model in models:
            if model.only:
                _put(nodes[model.only], model)
        for name in nodes:
            load_all(rbee, name, models)
        running = stack.enter_context(gateway(_Watched(rbee.home, rbee.run_dir, rbee.env), "@far"))
        yield Served(rbee, nodes, running.address, running.process)


def inventory(nodes: Iterable[ContainerNode], models: Sequence[Model]) -> str:
    """Of these nodes, and of the models that they can have."""
    there = list(nodes)
    names = {each.name for each in there} | {""}
    tables = [model.table() for model in models if model.only in names]
    return "\n".join([*(each.inventory(tags='["far"]') for each in there), *tables])


def load_all(rbee: Rbee, node: str, models: Sequence[Model]) -> None:
    """Have a worker of each model that is for this node."""
    for model in models:
        if model.only in ("", node):
            rbee("infer", "--node", node, "--model", model.name, "--max-tokens", "1", "Hello")


def _make_image(rbee: Rbee, key: KeyPair, image: str, models: Sequence[Model]) -> None:
    """A node that is set up, with the built-in model and these. From what another run left, where there is such an
    image: rbee itself brings what is new since then."""
    known = docker.from_env().images.list(IMAGE)
    with node(key, image=IMAGE if known else None) as first:
        rbee.inventory.write_text(first.inventory())
        rbee("infer", "--node", "node", "--max-tokens", "1", "Hello")
        rbee("hive", "stop", "node")
        for model in models:
            _put(first, model)
        first.keep_as(image)


def _start(
    stack: ExitStack, key: KeyPair, image: str, count: int, processors: float | None
) -> dict[str, ContainerNode]:
    nodes = {}
    for number in range(count):
        container, started = start_node(key, name=f"n{number}", image=image, processors=processors)
        stack.callback(container.stop)
        nodes[started.name] = started
    return nodes


def _put(node: ContainerNode, model: Model) -> None:
    """Make the copy where it is to be, as if it had been sent: 100 MB less over SSH for each."""
    if model.called:
        words = [model.called, model.ref(), model.sha256(), MODEL, (_CALLED + _AFTER).decode(), _CALLED.decode()]
        newest = "PYTHONPATH=$(ls -t payloads/*.zip | head -n 1) $(ls -t runtimes/*/bin/python | head -n 1)"
        node.exec(f"cd {FOLDER}/.. && {newest} - {shlex.join(words)} <<'END'\n{_COPY}END\n", user="bee")


@contextmanager
def forwarded(served: Served, name: str) -> Iterator[Path]:
    """A socket here that OpenSSH takes to the worker's on a node."""
    (worker,) = served.rbee("workers", "list", name, "--json").json()
    remote = served.rbee("workers", "show", worker["id"], "--json").json()["socket"]
    with tempfile.TemporaryDirectory(prefix="rbee-bench-l-") as folder:
        local = Path(folder, "w.sock")
        *words, target = ssh(served.nodes[name])
        tunnel = subprocess.Popen([*words, "-N", "-L", f"{local}:{remote}", target])
        try:
            wait_until(local.is_socket, START_S, lambda: "ssh has made no socket")
            yield local
        finally:
            tunnel.terminate()
            tunnel.wait(10)
