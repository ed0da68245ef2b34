"""Run the benchmarks named on the command line, or all of them; print a table each and write benchmarks/results/."""

from __future__ import annotations

import argparse
import importlib
import os
import signal

from benchmarks.harness import Report, machine

NAMES = (
    "startup",
    "warm",
    "serve",
    "litellm",
    "slow_streams",
    "affinity",
    "cold",
    "newcomer",
    "fanout",
    "gc",
    "idle",
    "fit",
    "portable",
    "stream",
    "batch",
    "constrained",
    "prefix",
    "soak",
    "gateway_soak",
    "failover",
    "fleet",
    "cycles",
    "top",
)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # so that what was started is ended
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed rbee is compiled once, not at each start
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all when none is given")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in names:
        report = Report(name, importlib.import_module(f"benchmarks.{name}").measure(), machine())
        print(report.table(), flush=True)
        print(f"written to {report.write()}\n", flush=True)


if __name__ == "__main__":
    main()
