"""A worker process from its first line to its last: configuration on stdin, socket, model, answers, end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rbee_remote.protocol import (
    ErrorCode,
    ProtocolError,
    RemoteError,
    Served,
    WorkerConfig,
    WorkerStatus,
    decode,
    greeting,
    keeper_socket,
)
from rbee_remote.sandbox import OFF, ON, confine_worker, paths
from rbee_remote.serving.socket_server import SocketServer
from rbee_remote.system.child import SPIN_ALONE
from rbee_remote.system.command import accept_tags
from rbee_remote.worker.engine.interface import Engine, LoadEngine, Progress
from rbee_remote.worker.http.app import make_app
from rbee_remote.worker.service.hive_pipe import StatusPipe
from rbee_remote.worker.service.service import Service

#: Seconds that responses get to reach their clients once the worker has ended.
FAREWELL_S = 3

_log = logging.getLogger("rbee.worker")


def main(argv: list[str]) -> int:
    """0 when the worker ended as planned, 1 when it failed, 2 when its configuration is wrong."""
    parser = argparse.ArgumentParser(prog="worker", description="Serve one model. Reads a WorkerConfig on stdin.")
    parser.add_argument("--status-fd", type=int, help="descriptor for WorkerStatus lines, whose reader is the hive")
    accept_tags(parser)
    options = parser.parse_args(argv)
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        config = decode(WorkerConfig, json.load(sys.stdin))
    except (ProtocolError, ValueError) as error:
        _log.error("bad configuration: %s", error)
        return 2
    return asyncio.run(serve(config, _load, options.status_fd, confine=_confine))


async def serve(
    config: WorkerConfig,
    load: LoadEngine,
    status_fd: int | None = None,
    *,
    confine: Callable[[WorkerConfig], str] = lambda _: "",
) -> int:
    """Be a worker until it ends; the exit status. status_fd: write end of the pipe to the hive, owned by this call.

    confine: called once what is outside of the sandbox is open, while there is one thread, and before anything of the
    model is; what it returns is told as the worker's sandbox, and what it raises is why the load failed.
    """
    pipe: StatusPipe | None = None

    def report(status: WorkerStatus) -> None:
        if pipe:
            pipe.write(status)
            _record(config, pipe.unsent())

    refusals: list[RemoteError] = []

    def load_confined(config: WorkerConfig, progress: Progress) -> Engine:
        if refusals:
            raise refusals[0]
        return load(config, progress)

    service = Service(config, load_confined, report)
    if status_fd is not None:
        pipe = StatusPipe(status_fd, on_gone=lambda: _hive_gone(service))
    with _unix_socket() as listener, _unix_socket() as greeted:
        with contextlib.ExitStack() as listening, _signals(service):
            if config.secret:
                listening.enter_context(_listening(greeted, Path(keeper_socket(config.socket))))
            listening.enter_context(_listening(listener, Path(config.socket)))
            try:
                service.state.sandbox = confine(config)
            except RemoteError as error:
                refusals.append(error)
            server = SocketServer(
                make_app(service),
                grace_s=FAREWELL_S,
                greeted=greeted if config.secret else None,
                greeting=greeting(config.secret),
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            serving.add_done_callback(lambda _: service.stop(drain=False))  # nobody could reach it any more
            service.start()
            failure = await service.wait_ended()
        server.end()
        await serving
    if pipe:
        await pipe.flushed(FAREWELL_S)
        pipe.close()
        _record(config, pipe.unsent())
    return 0 if failure is None else 1


def _load(config: WorkerConfig, progress: Progress) -> Engine:
    """In the engine's thread, so that the socket serves before llama.cpp's libraries are there."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_ALONE)  # a hive, which knows the neighbours, has said it already
    try:
        from rbee_remote.worker.llama.engine import load_engine
    except (ImportError, OSError, RuntimeError) as error:
        raise RemoteError(
            ErrorCode.BOOTSTRAP_FAILED,
            f"the runtime's llama.cpp cannot be loaded: {error}",
            hint=_hint_of(config),
        ) from error
    engine = load_engine(config, progress)
    gc.freeze()  # all that is there stays; to look through it again and again would hold every stream up
    return engine


def _hint_of(config: WorkerConfig) -> str:
    again = "remove the node's folder runtimes; the next command makes it again"
    if config.sandbox == OFF or (config.sandbox != ON and config.options.backend != "cpu"):
        return again
    return (
        "libraries outside of the system's folders are out of the sandbox's reach: name their folders in the node's "
        f'env as LD_LIBRARY_PATH, or set sandbox = "off" for the node. If it is not that, {again}'
    )


def _confine(config: WorkerConfig) -> str:
    logs = str(Path(config.home) / "log") if config.home else ""
    adapters = [adapter.path for adapter in config.adapters]
    rules = paths.serving(config.path, run_dir=str(Path(config.socket).parent), logs=logs, adapters=adapters)
    done = confine_worker(config.sandbox, config.options.backend, rules)
    _log.info("sandbox: %s", done)
    return done


def _record(config: WorkerConfig, served: list[Served]) -> None:
    """Write down what the hive, which is gone, cannot any more."""
    if served and config.home:
        from rbee_remote.system.audit import Audit
        from rbee_remote.system.layout import Layout

        audit = Audit(Layout(Path(config.home), Path(config.socket).parent))
        for one in served:
            audit.served(one, model=config.model, worker=config.id)


def _hive_gone(service: Service) -> None:
    _log.warning("the hive is gone")
    service.stop(drain=True)


@contextlib.contextmanager
def _signals(service: Service) -> Iterator[None]:
    """SIGTERM and SIGINT cancel what runs; each request's stream still gets its `done`."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, lambda: service.stop(drain=False))
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


@contextlib.contextmanager
def _listening(listener: socket.socket, path: Path) -> Iterator[None]:
    """Have a unix socket of mode 0600 at `path`, which appears there only once it accepts connections.

    It replaces what a dead worker left. At the end the path is removed, if it is still this socket's.
    """
    staged = path.with_name(f".{os.getpid()}")
    staged.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        listener.bind(str(staged))
    finally:
        os.umask(mask)
    listener.listen(128)
    inode = staged.stat().st_ino
    staged.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()
