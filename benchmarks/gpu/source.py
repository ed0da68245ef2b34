"""The locked sources of llama-cpp-python, cut down to what the wheel, llama-bench and llama-server are made of, and
packed anew: 7 MB in place of 77."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

#: Folders of llama.cpp that neither a library nor one of the two programs is made of.
_LEFT_OUT = frozenset(
    {
        *("app", "benches", "ci", "conversion", "docs", "examples", "gguf-py", "grammars", "media", "models", "pocs"),
        *("requirements", "skills", "tests"),
    }
)
#: Of `tools/`: the programs, and what they are linked with. Of `ui` no more than what says that there is none.
_TOOLS = frozenset({"llama-bench", "mtmd", "server", "ui"})
_OF_THE_UI = re.compile(r"CMakeLists\.txt|[\w.]+\.cmake|ui\.(cpp|h)\.in")
#: Beside `vendor/`: documentation, examples and tests of the bindings.
_OF_THE_BINDINGS = frozenset({".git", ".github", "docker", "docs", "examples", "scripts", "tests"})
#: A vocabulary that a model of random weights is given.
VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-qwen2.gguf"

#: By file: what to find there, once, and what to put in its place.
CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "vendor/llama.cpp/tools/CMakeLists.txt": (
        (
            r"(?s)    add_subdirectory\(batched-bench\).*add_subdirectory\(results\)",
            "    add_subdirectory(llama-bench)\n    add_subdirectory(mtmd)\n    add_subdirectory(ui)\n"
            "    add_subdirectory(server)",
        ),
    ),
    # the wheel is what nodes get, without a program of llama.cpp
    "vendor/llama.cpp/tools/server/CMakeLists.txt": ((r"\ninstall\(TARGETS \$\{TARGET\} RUNTIME\)\n", "\n"),),
}


class NotThatSourceError(Exception):
    """The archive is not of the version that `CHANGES` was written for."""


def cut_down(archive: Path, target: Path) -> Path:
    """Write to `target`, a tar compressed by xz, what of `archive` is needed. Raises NotThatSourceError."""
    changed = set()
    with tarfile.open(archive, "r:gz") as source, tarfile.open(target, "w:xz", preset=6) as sink:
        for entry in source:
            inside = entry.name.partition("/")[2]
            if is_left_out(inside):
                continue
            content = source.extractfile(entry) if entry.isreg() else None
            if content and inside in CHANGES:
                text = change(inside, content.read().decode()).encode()
                entry.size, content = len(text), io.BytesIO(text)
                changed.add(inside)
            sink.addfile(entry, content)
    if missing := CHANGES.keys() - changed:
        raise NotThatSourceError(f"{archive.name} has no {', '.join(sorted(missing))}")
    return target


def is_left_out(inside: str) -> bool:
    """Whether a file is left out. inside: its path below the archive's one folder."""
    parts = inside.split("/")
    if parts[0] in _OF_THE_BINDINGS and len(parts) > 1:
        return True
    if parts[:2] != ["vendor", "llama.cpp"] or len(parts) < 4 or inside == VOCABULARY:
        return False
    if parts[2] == "tools" and len(parts) > 4:
        return parts[3] not in _TOOLS or (parts[3] == "ui" and (len(parts) > 5 or not _OF_THE_UI.fullmatch(parts[4])))
    return parts[2] in _LEFT_OUT or parts[2].startswith(".")


def change(inside: str, text: str) -> str:
    """The text of a file with what `CHANGES` says of it. Raises NotThatSourceError."""
    for pattern, replacement in CHANGES[inside]:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise NotThatSourceError(f"{inside} has {count} places like {pattern!r}; use the locks of this checkout")
    return text
