"""`python -m rbee`, and the `rbee` command."""

from __future__ import annotations

import sys


def main() -> None:
    from rbee.cli.main import main as cli_main

    sys.exit(cli_main())


if __name__ == "__main__":
    main()
