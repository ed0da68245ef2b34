"""`measure`: what a model would take of memory, as llama.cpp says. Reads a MeasureRequest, prints a MeasureAnswer.

llama.cpp is imported, and its libraries loaded, when the process is confined: numpy's library starts threads, which
would stay outside.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys

from rbee_remote.protocol import ErrorCode, ProtocolError, RemoteError, decode, encode
from rbee_remote.protocol.measuring import MeasureRequest
from rbee_remote.sandbox import confine_worker, paths
from rbee_remote.system.command import accept_tags
from rbee_remote.system.reader import end_with_reader


def main(argv: list[str]) -> int:
    """Raises RemoteError USAGE, MODEL_NOT_FOUND, MODEL_INVALID, BACKEND_UNAVAILABLE, NODE_UNSUPPORTED."""
    parser = argparse.ArgumentParser(prog="rbee_remote measure", description=__doc__)
    accept_tags(parser)
    parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR)  # its warnings are for who loads the model
    try:
        request = decode(MeasureRequest, json.load(sys.stdin))
    except (ProtocolError, ValueError) as error:
        raise RemoteError(ErrorCode.USAGE, f"bad request: {error}") from error
    confine_worker(request.sandbox, request.options.backend, paths.reading(request.path))
    end_with_reader()
    from rbee_remote.worker.llama.memory import measure

    sys.stdout.write(json.dumps(encode(measure(request))) + "\n")
    return 0
