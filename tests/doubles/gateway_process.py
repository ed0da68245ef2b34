"""A gateway with doubles for its parts, as a process of its own: `python -m tests.doubles.gateway_process HOME PATH`.

It serves on a free port of 127.0.0.1 and on the socket PATH, and prints a line when it does, and how it ended.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rbee.base.errors import RbeeError
from rbee.base.events import Event
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.gateway import serve
from rbee.gateway.access.listen import parse_address
from rbee.inventory import LOCAL, Inventory, Node
from rbee.registry import Registry
from tests.doubles.constructors import Constructors


def main(home: str, path: str) -> int:
    parts = Constructors()

    def say(event: Event | serve.Serving | str) -> None:
        sys.stdout.write(f"{event} {parts.few_nodes.reloads}\n")
        sys.stdout.flush()

    settings = Settings(Path(home))
    registry = settings.registry_path
    context = Context(settings, Inventory({LOCAL: Node(LOCAL)}), lambda: Registry.open(registry), "0" * 16, emit=say)
    options = serve.ServeOptions(settings.home / "keys.toml", (parse_address("127.0.0.1:0"),), Path(path))
    try:
        asyncio.run(serve.serve(context, options, parts, tell=say))
    except RbeeError as error:
        say(error.code.value)
        return error.exit_status
    say("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
