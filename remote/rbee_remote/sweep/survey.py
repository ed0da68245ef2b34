"""`survey`: what of rbee is on this node, printed as a `Survey`. Changes nothing."""

from __future__ import annotations

import argparse
import json
import sys

from rbee_remote.protocol import Survey, encode
from rbee_remote.sweep import files, processes
from rbee_remote.system.interface import System, this_system


def main(argv: list[str]) -> int:
    """Raises RemoteError NODE_UNSUPPORTED."""
    parser = argparse.ArgumentParser(prog="rbee_remote survey", description=__doc__)
    parser.add_argument("--home", required=True, help="models, logs, payloads, runtimes")
    parser.add_argument("--run-dir", required=True, help="sockets and the lock")
    options = parser.parse_args(argv)
    sys.stdout.write(json.dumps(encode(survey(this_system(), options.home, options.run_dir))) + "\n")
    return 0


def survey(system: System, home: str, run_dir: str) -> Survey:
    """home, run_dir: absolute; they need not exist."""
    ours = processes.find_ours(system, system.processes(), home, run_dir)
    seen = processes.see(system, ours)
    return Survey(
        boot_id=system.boot_id(),
        host=system.host(),
        clock=system.clock(),
        home=home,
        run_dir=run_dir,
        processes=tuple(seen),
        files=tuple(files.see(system, home, run_dir, ours)),
    )
