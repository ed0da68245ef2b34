"""`rbee`, begun as `watched_gateway.py FILE WORDS…`, which writes the tasks of its event loop to FILE at each SIGUSR1:
one a line, by the name of its coroutine."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from rbee.__main__ import _run


def main() -> int:
    target = Path(sys.argv.pop(1))

    def tell(*_: object) -> None:
        part = target.with_suffix(".part")
        names = sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
        part.write_text("\n".join(names))
        part.replace(target)

    signal.signal(signal.SIGUSR1, tell)
    return _run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
