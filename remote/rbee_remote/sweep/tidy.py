"""`tidy`: ends processes and removes files that a keeper has decided on, as far as they still are what it saw.

Reads a `TidyRequest` on stdin and prints a `TidyReport`.
"""

from __future__ import annotations

import json
import sys

from rbee_remote.protocol import (
    ErrorCode,
    ProtocolError,
    RemoteError,
    TidyReport,
    TidyRequest,
    decode,
    encode,
)
from rbee_remote.sweep.removal import remove_files
from rbee_remote.sweep.termination import end_processes
from rbee_remote.system.interface import System, this_system


def main(argv: list[str]) -> int:
    """Raises RemoteError USAGE, NODE_UNSUPPORTED."""
    if argv:
        raise RemoteError(ErrorCode.USAGE, "tidy takes its request on stdin, and no arguments")
    try:
        request = decode(TidyRequest, json.load(sys.stdin))
    except (ProtocolError, ValueError) as error:
        raise RemoteError(ErrorCode.USAGE, f"bad request: {error}") from error
    if not request.home.startswith("/") or not request.run_dir.startswith("/") or request.patience_s < 0:
        raise RemoteError(ErrorCode.USAGE, "bad request: home and run_dir have to be absolute, patience not negative")
    sys.stdout.write(json.dumps(encode(tidy(this_system(), request))) + "\n")
    return 0


def tidy(system: System, request: TidyRequest) -> TidyReport:
    """Processes first: what they used is free then."""
    ended = end_processes(system, request)
    return TidyReport((*ended, *remove_files(system, request)))
