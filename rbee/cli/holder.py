"""`python -m rbee.cli.holder PLAN`: the process that a command leaves behind; `rbee.link.holder` says what it is."""

from __future__ import annotations

import asyncio
import os
import sys

from rbee.base.errors import RbeeError
from rbee.cli.linked import run_for_client
from rbee.link.holder import hold
from rbee.link.leaving import Plan


def main(words: str) -> int:
    os.umask(0o077)
    try:
        asyncio.run(hold(Plan.read(words), run_for_client))
    except RbeeError:
        return 2  # nobody reads what it would say; the commands say it themselves
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    os._exit(status)  # a thread that a file system keeps waiting is not waited for
