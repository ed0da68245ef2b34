"""`digest FILE`: the SHA-256 of somebody else's model, with how its files looked, as FileDigest JSON.

A process of its own, so that it can have less of processor and disk than everything else, and be ended at any moment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

import psutil

from rbee_remote.protocol import ErrorCode, RemoteError, encode
from rbee_remote.protocol.splits import digest_of_parts
from rbee_remote.sandbox import confine_reader
from rbee_remote.system.command import accept_tags
from rbee_remote.system.hashing import sha256_of
from rbee_remote.system.model_files import files_of, look
from rbee_remote.system.reader import end_with_reader

_NICEST = 19


@dataclasses.dataclass(frozen=True, slots=True)
class FileDigest:
    """Of one file, or of all parts of a split model, as in ModelInfo. stamp: of `model_files.look`, the same before and
    after they were read."""

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
    before = look(path)
    sha256 = digest_of_parts([sha256_of(file) for file in files_of(path)])
    if look(path).stamp != before.stamp:
        raise RemoteError(ErrorCode.MODEL_INVALID, f"{path} has changed while it was read")
    return FileDigest(sha256, before.size, before.stamp)


def _step_back() -> None:
    """Everything else on this machine goes first, where the system can be told so."""
    os.nice(_NICEST)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
