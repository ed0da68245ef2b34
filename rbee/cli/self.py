"""`rbee self`: what this rbee is, and what it keeps on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import ConfigError, NodeError
from rbee.cli.shell import Shell, command, group
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.cleanup.unpacked import Copy

AllOption = Annotated[
    bool, typer.Option("--all", help="The copy that this command runs from, too; the next start unpacks it again.")
]


def register(app: typer.Typer) -> None:
    own = group(app, "self", "What this rbee is, and what it keeps on this machine.")
    command(own, "check", example="rbee self check --json")(check)
    command(own, "clean", example="rbee self clean")(clean)


def check(shell: Shell) -> None:
    """Show what this rbee is and where, whether its files are what was unpacked, and how much disk it takes."""
    from rbee.base import installation
    from rbee.cleanup import unpacked

    image, copies = installation.unpacked(), unpacked.copies()
    damage = unpacked.damage(image) if image else []
    found = {**_form(), "damaged": damage if image else None}
    found |= {"copies": [_copy(copy) for copy in copies], "cache_mb": _cache_mb(shell)}
    shell.renderer.record(found if shell.options.json else _for_people(found, copies))
    if damage:
        raise ConfigError(
            f"{len(damage)} files of {image} are not what was unpacked, such as {damage[0]}",
            hint="`rbee self clean --all` removes them; the next start unpacks them again",
            details={"files": damage[:20]},
        )


def clean(shell: Shell, all_: AllOption = False) -> None:
    """Remove copies of rbee in one file that nothing runs from: of earlier versions, or half unpacked."""
    import os

    from rbee.cleanup import unpacked

    renderer = shell.renderer  # read in before its code may be gone
    removed: list[Copy] = []
    running: list[int] = []
    for copy in unpacked.copies():
        others = [pid for pid in copy.used_by if pid != os.getpid()]
        running += others
        if not others and (all_ or not copy.is_this):
            removed.append(copy)
    for copy in sorted(removed, key=lambda copy: copy.is_this):  # that one last
        _remove(copy)
    freed = round(sum(copy.size for copy in removed) / 1e6)
    text = f"removed {len(removed)}, {freed} MB" if removed else "nothing to remove"
    if running:
        text += f"; kept what runs: {', '.join(map(str, running))} (`rbee link stop` ends what holds connections)"
    renderer.done(text, {"removed": [str(copy.path) for copy in removed], "freed_mb": freed, "in_use_by": running})


def _remove(copy: Copy) -> None:
    from rbee.cleanup import unpacked

    try:
        unpacked.remove(copy)
    except OSError as error:
        raise NodeError(
            ErrorCode.CLEANUP_FAILED,
            f"{copy.path} cannot be removed: {error.strerror}",
            hint="see who owns what is in it",
        ) from error


def _form() -> dict[str, Any]:
    """What this is: its version, and the file, package or checkout it comes from."""
    import json
    import platform
    import sys
    from pathlib import Path

    from rbee.base import installation
    from rbee_remote.protocol import VERSION

    image, code = installation.unpacked(), Path(installation.__file__).parents[1]
    file = installation.one_file()
    form = "one file" if image else "package" if code.is_relative_to(sys.prefix) else "checkout"
    about = json.loads((image / installation.ABOUT).read_text(encoding="utf-8")) if image else {}
    return {
        "version": VERSION,
        "form": form,
        "file": str(file) if file else None,
        "code": str(image or code),
        "python": f"{platform.python_version()} ({sys.executable})",
        "oldest_glibc": about.get("glibc"),
    }


def _copy(copy: Copy) -> dict[str, Any]:
    return {
        "path": str(copy.path),
        "size_mb": round(copy.size / 1e6),
        "is_this": copy.is_this,
        "is_whole": copy.is_whole,
        "used_by": list(copy.used_by),
    }


def _cache_mb(shell: Shell) -> dict[str, int]:
    """What rbee keeps for its nodes, by kind."""
    from rbee.cleanup.unpacked import disk_size
    from rbee.setup.wheels.cache import WheelCache

    cache = shell.settings.cache
    folders = {name: cache / name for name in ("models", "payloads", "interpreters")}
    folders["wheels"] = WheelCache.of(shell.settings).root
    return {name: round(disk_size(folder) / 1e6) for name, folder in folders.items()}


def _for_people(found: dict[str, Any], copies: Sequence[Copy]) -> dict[str, Any]:
    shown = {name: value for name, value in found.items() if name not in {"damaged", "copies", "cache_mb"}}
    if found["damaged"] is not None:
        shown["files"] = f"{len(found['damaged'])} damaged" if found["damaged"] else "as they were unpacked"
    shown["copies"] = [
        f"{copy.path} ({copy.size / 1e6:.0f} MB{', this one' if copy.is_this else ''}"
        f"{'' if copy.is_whole else ', half unpacked'})"
        for copy in copies
    ]
    shown["cache"] = ", ".join(f"{name} {size} MB" for name, size in found["cache_mb"].items())
    return {name: value for name, value in shown.items() if value not in (None, [])}
