"""`rbee serve`: one endpoint for all nodes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rbee.base.errors import UsageError
from rbee.cli.keys import KeysOption
from rbee.cli.options import complete_node
from rbee.cli.shell import Shell, command

if TYPE_CHECKING:
    from rbee.gateway.serve import ServeOptions, Serving

ListenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        metavar="HOST:PORT",
        help="Where to listen; repeatable. [default: 127.0.0.1:11435, unless --socket is given]",
        show_default=False,
    ),
]
SocketOption = Annotated[
    Path | None, typer.Option("--socket", metavar="PATH", help="A unix socket to listen at, for this user alone.")
]
NodesOption = Annotated[
    str | None,
    typer.Option("--nodes", metavar="NAME", help="A node, @TAG or all. [default: all]", autocompletion=complete_node),
]
CertificateOption = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Serve TCP with TLS: the certificate and its chain.")
]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="The certificate's private key.")]
CorsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cors", metavar="ORIGIN", help="A web site whose pages may ask, such as https://chat.example; repeatable."
    ),
]
BuildOption = Annotated[
    bool,
    typer.Option(
        "--build-for-gpus",
        help="Build llama.cpp in the background, with the least priority, for nodes whose GPU idles for want of it.",
    ),
]
InstallOption = Annotated[
    bool, typer.Option("--install", help="Show how systemd runs this by itself; install nothing.")
]


def register(app: typer.Typer) -> None:
    command(app, "serve", example="rbee serve --nodes @gpu")(serve)


@contextmanager
def _ending_well() -> Iterator[None]:
    """SIGTERM and Ctrl-C are how it ends, also while it only begins and nothing is there to be drained."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


@_ending_well()
def serve(
    shell: Shell,
    listen: ListenOption = None,
    socket: SocketOption = None,
    nodes: NodesOption = None,
    keys: KeysOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    cors: CorsOption = None,
    build_for_gpus: BuildOption = False,
    install: InstallOption = False,
) -> None:
    """One address for all nodes, which OpenAI's clients can use. Runs until Ctrl-C."""
    from rbee.gateway.access.keys import default_path
    from rbee.gateway.access.listen import DEFAULT, parse_address
    from rbee.gateway.serve import ServeOptions

    if bool(tls_cert) != bool(tls_key):
        raise UsageError("--tls-cert and --tls-key belong together", hint="give both, or neither")
    shell.inventory.select(nodes)
    options = ServeOptions(
        keys=keys.absolute() if keys else default_path(shell.settings),
        listen=tuple(parse_address(each) for each in listen or ([] if socket else [DEFAULT])),
        socket=socket,
        nodes=nodes,
        certificate=tls_cert,
        key=tls_key,
        origins=tuple(_origin(each) for each in cors or ()),
        build_for_gpus=build_for_gpus,
    )
    if install:
        _show_unit(shell, options, [str(address) for address in options.listen] if listen else [])
    else:
        _serve(shell, options)


def _origin(text: str) -> str:
    """As browsers send it. Raises UsageError."""
    if not re.fullmatch(r"https?://[^/?#@\s]+", text):
        raise UsageError(
            f"--cors: {text!r} is no origin",
            hint="write scheme, host and port alone, such as https://chat.example:8443",
        )
    return text.lower()


def _serve(shell: Shell, options: ServeOptions) -> None:
    from rbee.cli.linked import run_for_client
    from rbee.cli.shell import log_warnings_to_stderr
    from rbee.gateway.assembly import Assembly
    from rbee.gateway.serve import serve

    def tell(serving: Serving) -> None:
        if shell.options.json:
            shell.renderer.record({"serving": list(serving.urls), "nodes": serving.nodes})
        elif not shell.options.quiet:
            nodes = "1 node" if serving.nodes == 1 else f"{serving.nodes} nodes"
            shell.renderer.write(f"serving on {' and '.join(serving.urls)} ({nodes})\n")

    log_warnings_to_stderr()
    shell.run(serve(shell.context, options, Assembly(run_for_client, build_for_gpus=options.build_for_gpus), tell=tell))


def _show_unit(shell: Shell, options: ServeOptions, listen: list[str]) -> None:
    from rbee.cleanup.install import gateway_unit
    from rbee.cli.installed import command_words, show, variables
    from rbee.gateway.access.keys import default_path
    from rbee.gateway.life import DRAIN_S
    from rbee.setup.wheels.cache import ENV_CACHE, WheelCache

    keys = options.keys if options.keys != default_path(shell.settings) else None
    given = {
        "--listen": listen,
        "--socket": _absolute(options.socket),
        "--nodes": [options.nodes] if options.nodes else [],
        "--keys": _absolute(keys),
        "--tls-cert": _absolute(options.certificate),
        "--tls-key": _absolute(options.key),
        "--cors": options.origins,
    }
    cache = {ENV_CACHE: str(WheelCache.of(shell.settings).root)} if os.environ.get(ENV_CACHE) else {}
    words = command_words(shell, "serve", given) + ["--build-for-gpus"] * options.build_for_gpus
    unit = gateway_unit(words, variables(shell) | cache, DRAIN_S)
    text = (
        f"# For systemd: ~/.config/systemd/user/rbee-serve.service\n{unit}\n"
        "# Then: systemctl --user enable --now rbee-serve; loginctl enable-linger, to go on while logged out.\n"
    )
    show(shell, {"service": unit}, text)


def _absolute(path: Path | None) -> list[str]:
    return [str(path.absolute())] if path else []
