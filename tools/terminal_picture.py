"""Make the README's picture from what a terminal showed.

tmux capture-pane -e -p | python tools/terminal_picture.py docs/first-answer.svg
"""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    shown = sys.stdin.read().rstrip().splitlines()
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    for line in shown:
        console.print(Text.from_ansi(line), soft_wrap=True)
    Path(sys.argv[1]).write_text(console.export_svg(title="rbee"), encoding="utf-8")


if __name__ == "__main__":
    main()
