"""Models that other programs have on this node: Ollama, LM Studio, llama.cpp and the hub's own clients.

Rules
- They are used where they lie; nothing here writes, copies or deletes.
- Folders are other people's: links that lead out of them are not followed, unfinished files and what is no file are
  left out, and no listing or manifest costs more than its bound.
- A checksum in a file's name is what its program says. It is compared before the model is used.

Ollama: manifests/HOST/NAMESPACE/NAME/TAG name layers in blobs/sha256-… (ollama/ollama, docs and server/manifest.go).
The hub's clients: hub/models--OWNER--REPO/snapshots/COMMIT/FILE are links to blobs that are named by their SHA-256.
LM Studio: models/OWNER/REPO/FILE. llama.cpp: its cache has OWNER_REPO_FILE, which does not say where OWNER ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rbee_remote.protocol.elsewhere import FoundElsewhere
from rbee_remote.protocol.quants import is_model
from rbee_remote.protocol.splits import grouped

#: Entries of each program's folders that are looked at, and bytes of a manifest.
MOST_ENTRIES = 5000
MOST_OF_MANIFEST = 256 * 1024
MOST_FOUND = 500
#: Folders between the hub's cache and a file in it.
_DEEPEST = 8

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_LAYER = "application/vnd.ollama.image.model"
_OLLAMA_HOST = "registry.ollama.ai"


def found_elsewhere(home: Path, env: Mapping[str, str]) -> list[FoundElsewhere]:
    """All that this user may read, once under each of its names. home: the user's. Takes a moment for large folders."""
    ollama = [Path(env["OLLAMA_MODELS"])] if env.get("OLLAMA_MODELS") else []
    ollama += [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    hub = Path(env.get("HF_HUB_CACHE") or (Path(env.get("HF_HOME") or home / ".cache/huggingface") / "hub"))
    llama = Path(env.get("LLAMA_CACHE") or home / ".cache/llama.cpp")
    found = itertools.chain(
        *(_of_ollama(folder) for folder in ollama),
        *(_of_folders(folder, "LM Studio") for folder in (home / ".lmstudio/models", home / ".cache/lm-studio/models")),
        _of_hub(hub),
        _of_llama(llama),
    )
    return list(dict.fromkeys(itertools.islice(found, MOST_FOUND)))


def _of_ollama(root: Path) -> Iterator[FoundElsewhere]:
    for manifest in _bounded(root / "manifests", 4):
        parts = manifest.relative_to(root / "manifests").parts
        if len(parts) != 4:
            continue
        host, namespace, name, tag = parts
        sha256 = _model_layer(manifest)
        blob = _size_of(root / "blobs" / f"sha256-{sha256}", root) if sha256 else None
        if blob is None:
            continue
        prefix = "" if (host, namespace) == (_OLLAMA_HOST, "library") else f"{namespace}/"
        prefix = prefix if host == _OLLAMA_HOST else f"{host}/{prefix}"  # as `ollama list` shows it
        repo = f"{namespace}/{name}" if host in ("hf.co", "huggingface.co") else ""
        path, size = blob
        yield FoundElsewhere(
            f"ollama:{prefix}{name}:{tag}".lower(), str(path), size, "Ollama", sha256, repo, tag if repo else ""
        )


def _model_layer(manifest: Path) -> str:
    """The SHA-256 that a manifest names; "" for what is no manifest of one GGUF file."""
    try:
        if not stat.S_ISREG(manifest.lstat().st_mode):
            return ""
        with manifest.open("rb") as file:
            data = json.loads(file.read(MOST_OF_MANIFEST))
        layers = [layer for layer in data["layers"] if layer["mediaType"] == _MODEL_LAYER]
        digest = _DIGEST.fullmatch(layers[0]["digest"]) if len(layers) == 1 else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    return digest[1] if digest else ""


def _of_folders(root: Path, program: str) -> Iterator[FoundElsewhere]:
    """OWNER/REPO/FILE; of a split model the first part, where all are there."""
    sizes: dict[str, int] = {}
    for file in _bounded(root, 3):
        is_named = file.name.endswith(".gguf") and len(file.relative_to(root).parts) == 3
        if is_named and (seen := _size_of(file, root)):
            sizes[str(file.relative_to(root))] = seen[1]
    for group in grouped(sizes):
        owner, repo, name = group.name.split("/", 2)
        if group.is_whole and is_model(name, repo):
            size = sum(sizes[each] for each in group.files)
            yield FoundElsewhere("", str(root / group.name), size, program, "", f"{owner}/{repo}", name)


def _of_hub(root: Path) -> Iterator[FoundElsewhere]:
    """Whole files alone: parts of a split model have no names there that llama.cpp would find the others by. Of a file
    that several commits have, the one that came last."""
    found: dict[tuple[str, str], tuple[float, FoundElsewhere]] = {}
    for file in _bounded(root, _DEEPEST, _has_snapshots):
        parts = file.relative_to(root).parts
        if not file.name.endswith(".gguf") or len(parts) < 4:
            continue
        repo, name = parts[0].removeprefix("models--").replace("--", "/", 1), "/".join(parts[3:])
        seen = _size_of(file, root)
        if seen and is_model(name, repo) and len(grouped([name])[0].files) == 1:
            path, size = seen
            sha256 = path.name if _SHA256.fullmatch(path.name) else ""
            each = FoundElsewhere("", str(path), size, "the Hugging Face cache", sha256, repo, name)
            came = path.stat().st_mtime
            if came >= found.get((repo, name), (came, each))[0]:
                found[repo, name] = came, each
    yield from (each for _, each in found.values())


def _has_snapshots(parts: tuple[str, ...]) -> bool:
    """Whether a folder of the hub's cache leads to models' files under their names."""
    return parts[0].startswith("models--") and parts[1:2] in ((), ("snapshots",))


def _of_llama(root: Path) -> Iterator[FoundElsewhere]:
    for file in _bounded(root, 1):
        seen = _size_of(file, root) if file.name.endswith(".gguf") else None
        if seen and is_model(file.name) and len(grouped([file.name])[0].files) == 1:
            yield FoundElsewhere("", str(seen[0]), seen[1], "llama.cpp", "", "", file.name)


def _bounded(root: Path, depth: int, enters: Callable[[tuple[str, ...]], bool] = lambda _: True) -> Iterator[Path]:
    """What is no folder, up to so many folders deep, in no order; of MOST_ENTRIES entries of whatever kind. Links to
    folders are not entered, nor what is not for us. enters: whether a folder is, by its path below the root."""
    left, folders = MOST_ENTRIES, [root]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in itertools.islice(entries, left):
                left -= 1
                path = Path(entry.path)
                if not entry.is_dir(follow_symlinks=False):
                    yield path
                elif len(parts := path.relative_to(root).parts) < depth and enters(parts):
                    folders.append(path)


def _size_of(file: Path, root: Path) -> tuple[Path, int] | None:
    """Where a file really lies, and its bytes; None for what is no readable file inside the folder."""
    try:
        real = file.resolve(strict=True)
        status = real.stat()
        if not real.is_relative_to(root.resolve()) or not stat.S_ISREG(status.st_mode) or not status.st_size:
            return None
        readable = os.access(real, os.R_OK)
    except (OSError, RuntimeError, ValueError):
        return None
    return (real, status.st_size) if readable and str(real).isprintable() else None
