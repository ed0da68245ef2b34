"""`python -m rbee`, and the `rbee` command."""

from __future__ import annotations

import sys


def main() -> None:
    sys.exit(_run(sys.argv[1:]))


def _run(words: list[str]) -> int:
    """Over the link where it takes the command; else here."""
    from rbee.link.client import BadOutputError, LostError, over_link

    try:
        status = over_link(words)
    except (KeyboardInterrupt, LostError, BadOutputError) as error:
        from rbee.cli.unlinked import ended

        return ended(words, error)
    if status is not None:
        return status
    from rbee.cli.main import main as cli_main

    return cli_main(words)


if __name__ == "__main__":
    main()
