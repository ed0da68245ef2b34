"""`ggml_gpus`: the GPUs that ggml finds on this node, and what memory they have. Prints a GgmlAnswer.

A process of its own: a driver that is initialised holds memory of its GPU for as long as the process lives, and can
crash it. It reads nothing that a stranger wrote.
"""

from __future__ import annotations

import argparse
import json
import sys

from rbee_remote.protocol import encode
from rbee_remote.sandbox.confine import harden
from rbee_remote.system.command import accept_tags
from rbee_remote.system.reader import end_with_reader


def main(argv: list[str]) -> int:
    """Raises RemoteError BACKEND_UNAVAILABLE."""
    parser = argparse.ArgumentParser(prog="rbee_remote ggml_gpus", description=__doc__)
    accept_tags(parser)
    parser.parse_args(argv)
    harden(privileges=False)  # a driver may have to start a setuid program of its own
    end_with_reader()
    from rbee_remote.worker.llama.device_list import device_list

    sys.stdout.write(json.dumps(encode(device_list())) + "\n")
    return 0
