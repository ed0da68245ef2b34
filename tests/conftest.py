"""Fixtures for every kind of test. Each gives what it starts a home of its own, and checks that nothing is left."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import hypothesis
import psutil
import pytest

from tests.patience import PATIENCE_S
from tests.testbed import assets, run
from tests.testbed.cli import Rbee
from tests.testbed.node import wait_until

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its image is on a registry that may be out of reach
os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")

# How long an example takes says nothing on a machine that does other things as well.
hypothesis.settings.register_profile("rbee", deadline=None)
hypothesis.settings.load_profile("rbee")

LEAK_PATIENCE_S = PATIENCE_S

# A shell that starts the tests in its background has them ignore Ctrl-C, which the commands under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """What is the user's is out of reach from here on; processes of xdist inherit the environment."""
    if not hasattr(config, "workerinput"):
        run.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        run.end()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files: those that wait for containers and servers beside those that compute,
    and what takes long first, so that none is left over at the end."""
    if not hasattr(config, "workerinput"):
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [path for path in files if _has(files[path], "container") or path.parent.name == "ssh"]
    others = sorted(files.keys() - {*waiting}, key=lambda path: (not _has(files[path], "model"), path))
    place = {path: at / len(others) for at, path in enumerate(others)}
    place |= {path: 0.7 * at / len(waiting) for at, path in enumerate(waiting)}
    items[:] = [item for path in sorted(files, key=lambda path: (place[path], path)) for item in files[path]]


def pytest_collection_finish() -> None:
    """What the collection made, half a million objects, stays: the garbage collector need not look through it again, a
    third of a second each time, which tests that look for what is left open have it do."""
    gc.collect()
    gc.freeze()


def _has(items: list[pytest.Item], marker: str) -> bool:
    return any(item.get_closest_marker(marker) for item in items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A container test without an engine is skipped; with RBEE_REQUIRE_CONTAINERS=1, as in CI, it fails."""
    if item.get_closest_marker("container") is None or (reason := _why_no_containers()) is None:
        return
    if os.environ.get("RBEE_REQUIRE_CONTAINERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def _why_no_containers() -> str | None:
    from tests.testbed import images

    try:
        images.node_image()
    except images.NoTestbed as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The real model: SmolLM2-135M-Instruct, Q4_1."""
    return assets.model()


@pytest.fixture
def rbee(tmp_path: Path) -> Iterator[Rbee]:
    """A keeper with an empty home. Whatever its `local` node still runs at the end is a leak."""
    with _keeper(tmp_path) as keeper:
        yield keeper


@pytest.fixture
def ready_rbee(rbee: Rbee, tmp_path_factory: pytest.TempPathFactory) -> Rbee:
    """As `rbee`, with a runtime for `local`, so that the first `infer` need not set it up; no payload, no model."""
    _give_runtime(rbee, tmp_path_factory)
    return rbee


@pytest.fixture(scope="module")
def shared_rbee(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rbee]:
    """A keeper for a whole module, for tests that only add to what is there."""
    with _keeper(tmp_path_factory.mktemp("keeper")) as keeper:
        yield keeper


@pytest.fixture
def rbee_home(rbee: Rbee) -> Path:
    return rbee.home


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A fresh SSH key pair that every container accepts."""
    return make_key(tmp_path_factory.mktemp("key") / "id_ed25519")


@pytest.fixture
def ssh_node(key: Any) -> Iterator[Callable[..., Any]]:
    """Starts nodes: `ssh_node(name=…, image=…, user=…, sshd=[…], memory=…)`; each is stopped at the end."""
    with ExitStack() as stack:
        yield _starter(stack, key)


@pytest.fixture(scope="session")
def bootstrapped_image(key: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of a node that has runtime and model already, so that a test's first `infer` takes two seconds."""
    from tests.testbed import images

    def bootstrap(image: str, tag: str) -> None:
        with _keeper(tmp_path_factory.mktemp("bootstrap")) as keeper, ExitStack() as stack:
            node = _starter(stack, key)(image=image)
            keeper.inventory.write_text(node.inventory())
            keeper("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
            keeper("hive", "stop", "gpu1")
            node.exec("cd /home/bee/.rbee/node && rm -rf log payloads runtimes/wheels && rm -rf /tmp/rbee-*")
            node.keep_as(tag)

    return images.bootstrapped_image(bootstrap)


@pytest.fixture
def ready_node(key: Any, bootstrapped_image: str) -> Iterator[Callable[..., Any]]:
    """Starts nodes as `ssh_node` does, with runtime and model on them for user bee; hive and worker are not started."""
    with ExitStack() as stack:
        start = _starter(stack, key)
        yield functools.partial(start, image=bootstrapped_image)


@pytest.fixture(scope="module")
def shared_ready_node(key: Any, bootstrapped_image: str) -> Iterator[Any]:
    """One node, `gpu1`, for a whole module, with runtime and model on it for user bee; hive and worker do not run."""
    with ExitStack() as stack:
        yield _starter(stack, key)(image=bootstrapped_image)


@pytest.fixture(scope="module")
def shared_node(key: Any) -> Iterator[Any]:
    """One bare node, `gpu1`, for a whole module."""
    with ExitStack() as stack:
        yield _starter(stack, key)()


@pytest.fixture(scope="module")
def warm_node(shared_rbee: Rbee, shared_ready_node: Any) -> Iterator[Any]:
    """The shared node, known to the shared keeper, with hive and worker running; quiet when the module ends."""
    shared_rbee.inventory.write_text(shared_ready_node.inventory())
    shared_rbee("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
    yield shared_ready_node
    shared_rbee("hive", "stop", "gpu1")
    shared_ready_node.assert_quiet()


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test's code sets, as the beginning of a worker does for its own process, is not there for the next one."""
    with run.kept_environment():
        yield


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No thread and no child of the test process outlives a test."""
    threads = set(threading.enumerate())
    children = _descendants()
    yield
    wait_until(lambda: not _started(threads), LEAK_PATIENCE_S, lambda: f"threads left: {_started(threads)}")
    wait_until(lambda: not _children(children), LEAK_PATIENCE_S, lambda: f"processes left: {_children(children)}")


def make_key(path: Path) -> Any:
    """A new ed25519 key pair, the private part in `path`."""
    import asyncssh

    from tests.testbed.node import KeyPair

    pair = asyncssh.generate_private_key("ssh-ed25519")
    pair.write_private_key(path)
    path.chmod(0o600)
    return KeyPair(path, pair.export_public_key().decode().strip())


@contextmanager
def _keeper(folder: Path) -> Iterator[Rbee]:
    home = folder / "keeper"
    (folder / "home").mkdir()
    (home / "cache" / "models").mkdir(parents=True)
    assets.store_built_in_model(home / "cache" / "models")
    run_dir = Path(tempfile.mkdtemp(prefix="rbee-test-", dir="/tmp"))  # short: a socket's path has 108 bytes at most
    keeper = Rbee(home, run_dir, {"RBEE_WHEEL_CACHE": str(assets.wheel_cache())})
    try:
        yield keeper
        _end_local_node(keeper)
    finally:
        for process in keeper.node_processes():
            process.kill()
        shutil.rmtree(run_dir)


def _give_runtime(keeper: Rbee, folders: pytest.TempPathFactory) -> None:
    """What the first to ask for it sets up, once for a run of the tests, as a user would."""
    made = run.folder()
    assert made is not None
    kept = made / "local-runtimes"
    with filelock.FileLock(f"{kept}.lock"):
        if not kept.is_dir():
            with _keeper(folders.mktemp("local")) as first:
                first("infer", "--max-tokens", "1", "Hello")
                shutil.rmtree(first.home / "node" / "runtimes" / "wheels")
                part = made / "local-runtimes.part"
                shutil.copytree(first.home / "node" / "runtimes", part, symlinks=True)
                part.rename(kept)
    (keeper.home / "node").mkdir(mode=0o700)
    shutil.copytree(kept, keeper.home / "node" / "runtimes", symlinks=True)


def _end_local_node(keeper: Rbee) -> None:
    """Stop the hive of `local` where one runs, as a user would; then nothing may be left of it."""
    if not keeper.node_processes() and not keeper.sockets():
        return
    keeper("hive", "stop", "local")
    wait_until(lambda: not keeper.node_processes(), LEAK_PATIENCE_S, lambda: f"left: {keeper.node_processes()}")
    assert keeper.sockets() == []


def _starter(stack: ExitStack, key: Any) -> Callable[..., Any]:
    from tests.testbed.node import ContainerNode, start_node

    def start(**options: Any) -> ContainerNode:
        container, node = start_node(key, **options)
        stack.callback(container.stop)
        return node

    return start


def _started(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that would keep the process from ending; libraries' helpers are daemons and do not."""
    return [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]


def _children(before: set[psutil.Process]) -> list[psutil.Process]:
    return [process for process in _descendants() if process not in before]


def _descendants() -> set[psutil.Process]:
    """Children of this process, theirs, and so on. psutil looks at all processes there are, twice for each test."""
    found, parents = set(), [os.getpid()]
    for parent in parents:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError, psutil.NoSuchProcess):  # they end meanwhile
                processes = [psutil.Process(int(child)) for child in tasks.read_text().split()]
                found.update(processes)
                parents += [process.pid for process in processes]
    return found
