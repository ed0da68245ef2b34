"""`python payload.zip COMMAND` on a node: hive, worker, download, inspect, digest, measure, ggml_gpus, render, pipe,
survey, tidy, gpus, search.

Each command imports only what it needs: `pipe` runs once per channel and has to be there at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rbee_remote.protocol import RemoteError
from rbee_remote.protocol.sweep import HIVE_COMMANDS

COMMANDS = (*HIVE_COMMANDS, "pipe", "survey", "tidy", "gpus", "search")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status: 0, 1 with a RemoteError as JSON on stdout, or 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="rbee_remote", description="The part of rbee that runs on a node.")
    parser.add_argument("command", choices=COMMANDS)
    command = parser.parse_args(arguments[:1]).command
    os.umask(0o077)  # what is made here is this user's alone, whatever the login's umask
    try:
        status = _run(command, arguments[1:])
    except RemoteError as error:
        sys.stdout.write(json.dumps(error.encode()) + "\n")
        sys.stdout.flush()
        status = 1
    sys.exit(status)


def _run(command: str, arguments: list[str]) -> int:
    if command == "pipe":
        from rbee_remote.serving import pipe

        return pipe.main(arguments)
    if command == "hive":
        from rbee_remote.hive import daemon

        return daemon.main(arguments)
    if command == "worker":
        from rbee_remote import worker

        return worker.main(arguments)
    if command == "download":
        from rbee_remote.hive.models import download

        return download.main(arguments)
    if command == "digest":
        from rbee_remote.hive.models import file_digest

        return file_digest.main(arguments)
    if command == "measure":
        from rbee_remote.worker import measure

        return measure.main(arguments)
    if command == "ggml_gpus":
        from rbee_remote.worker import ggml_gpus

        return ggml_gpus.main(arguments)
    if command == "render":
        from rbee_remote.worker.templates import render_process

        return render_process.main(arguments)
    if command == "survey":
        from rbee_remote.sweep import survey

        return survey.main(arguments)
    if command == "tidy":
        from rbee_remote.sweep import tidy

        return tidy.main(arguments)
    if command == "search":
        from rbee_remote.hive.models import search

        return search.main(arguments)
    if command == "gpus":
        from rbee_remote.system import gpu_report

        return gpu_report.main(arguments)
    from rbee_remote.gguf import metadata

    return metadata.main(arguments)


if __name__ == "__main__":
    main()
