"""`digest FILE`: the SHA-256 of somebody else's file, with how it looked, as FileDigest JSON.

A process of its own, so that it can have less of processor and disk than everything else, and be ended at any moment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

import psutil

from rbee_remote.protocol import ErrorCode, RemoteError, encode
from rbee_remote.sandbox import confine_reader
from rbee_remote.system.command import accept_tags
from rbee_remote.system.hashing import add_file, stamp
from rbee_remote.system.reader import end_with_reader

_NICEST = 19


@dataclasses.dataclass(frozen=True, slots=True)
class FileDigest:
    """stamp: of `hashing`, the same before and after the file was read."""

    sha256: str
    size: int
    stamp: str


def main(argv: list[str]) -> int:
    """Print the FileDigest of a file. Raises RemoteError MODEL_NOT_FOUND, MODEL_INVALID for one that is written to."""
    parser = argparse.ArgumentParser(prog="rbee_remote digest")
    parser.add_argument("file", type=Path)
    accept_tags(parser)
    file = parser.parse_args(argv).file
    _step_back()
    confine_reader(str(file.absolute()))
    end_with_reader()
    try:
        found = digest_of(file)
    except OSError as error:
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"{file} cannot be read: {error.strerror}") from error
    sys.stdout.write(json.dumps(encode(found)) + "\n")
    return 0


def digest_of(path: Path) -> FileDigest:
    """Raises OSError, RemoteError MODEL_INVALID."""
    digest = hashlib.sha256()
    before = path.stat()
    add_file(digest, path)
    if stamp(path.stat()) != stamp(before):
        raise RemoteError(ErrorCode.MODEL_INVALID, f"{path} has changed while it was read")
    return FileDigest(digest.hexdigest(), before.st_size, stamp(before))


def _step_back() -> None:
    """Everything else on this machine goes first, where the system can be told so."""
    os.nice(_NICEST)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
