"""The models on this node's disk: one JSON record per model, written whole or not at all.

Rules
- A record without its files is worth nothing: it is dropped when it is met.
- A split model is one record, with the path of its first part; its parts come and go together.
- What rbee owns lies inside the models folder, links followed; only that is ever deleted.
- A record names an owned file relative to the models folder, so that a home can move.
- Before a file loses its record, or gets its final name without one yet, a note beside it says so: whatever ends the
  hive meanwhile, the next one on this machine deletes what no record needs. Another machine that shares the home sees
  by the note's age whether its hive still waits for a worker.
- Somebody else's file may change at any time: its checksum is told while the file looks as it did when it was read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from rbee_remote.protocol import ErrorCode, ModelInfo, ModelMeta, ProtocolError, RemoteError, decode, encode
from rbee_remote.protocol.splits import numbered
from rbee_remote.system.changes import Changes
from rbee_remote.system.model_files import UNNEEDED, Look, files_of, look
from rbee_remote.system.sanitize import sanitize

_log = logging.getLogger(__name__)

MAX_REF = 1024
MAX_PATH = 4095

_RECORD = re.compile(r"[0-9a-f]{32}\.json")


def check_ref(model: str) -> str:
    """`model`, when it can be a model ref. Raises RemoteError USAGE."""
    if not model.strip() or len(model) > MAX_REF or not model.isprintable():
        raise RemoteError(ErrorCode.USAGE, f"{sanitize(model, 80)!r} cannot be a model ref")
    return model


def check_path(path: str) -> str:
    """`path`, when it can be one: no control characters, nothing that is no text. Raises RemoteError USAGE."""
    if not path or not path.isprintable() or len(os.fsencode(path)) > MAX_PATH:
        raise RemoteError(ErrorCode.USAGE, f"{sanitize(path, 80)!r} cannot be a path")
    return path


class Catalog:
    """The hive's only way to its records; used from the event loop alone. changed: wakes with each record that is
    written, removed or dropped."""

    def __init__(self, folder: Path) -> None:
        self.changed = Changes()
        self._folder = folder
        self._real = folder.resolve()
        #: First files of models that may be needed by no record; each has a note.
        self._replaced = [note.with_suffix("") for note in folder.glob(f"*.gguf{UNNEEDED}") if _is_own(note)]
        self._undeletable: set[Path] = set()

    def list(self) -> list[ModelInfo]:
        # Downloads keep notes of their own in the folder; only these names are records.
        found = [self._load(path) for path in sorted(self._folder.glob("*.json")) if _RECORD.fullmatch(path.name)]
        return sorted((info for info in found if info is not None), key=lambda info: info.model)

    def outdated(self) -> tuple[ModelInfo, ...]:
        """Those whose file was read by an rbee that did not look for all that this one does."""
        wanted = {field.name for field in dataclasses.fields(ModelMeta)}
        return tuple(info for info in self.list() if wanted - self._read_of(info.model))

    def _read_of(self, model: str) -> set[str]:
        """What the record has of the file's metadata."""
        try:
            meta = json.loads(self._record(model).read_bytes())["meta"]
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return set(meta) if isinstance(meta, dict) else set()

    def find(self, model: str) -> ModelInfo:
        """Raises RemoteError MODEL_NOT_FOUND, USAGE."""
        info = self._load(self._record(check_ref(model)))
        if info is None or info.model != model:
            nearest = difflib.get_close_matches(model, (other.model for other in self.list()), n=1, cutoff=0.7)
            raise RemoteError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{model} is not on this node",
                hint=f"did you mean {nearest[0]}?" if nearest else f"rbee models pull NODE {model}",
            )
        return info

    def add(self, info: ModelInfo) -> None:
        """Write the record, in place of one for the same model, whose file `discard_replaced` deletes."""
        before = self._load(self._record(info.model))
        if before and before.owned and before.path != info.path:
            self._note(Path(before.path))
        stored = info
        if info.owned:
            stored = dataclasses.replace(info, path=str(Path(info.path).relative_to(self._folder)))
        _write_atomically(self._record(info.model), json.dumps(encode(stored), indent=1).encode())
        if Path(info.path) in self._replaced:
            self._forget_note(Path(info.path))
        self.changed.notify()

    def remove(self, model: str) -> ModelInfo:
        """Forget a model, and delete its file where rbee owns it and no other record uses it.

        Raises RemoteError MODEL_NOT_FOUND, USAGE.
        """
        info = self.find(model)
        self._record(model).unlink()
        if info.owned:
            self.discard(self.locate(info.path))
        self.changed.notify()
        return info

    def discard(self, path: Path) -> None:
        """Delete an owned model's files, unless a record needs them. path: the first one's."""
        if all(other.path != str(path) for other in self.list()):
            for file in files_of(path):
                file.unlink(missing_ok=True)

    def discard_replaced(self, in_use: Callable[[str], bool]) -> None:
        """Delete the owned files in whose place others have come, but for those that are in use, by path. One that the
        disk does not give up stays for the next time."""
        for path in [path for path in self._replaced if not in_use(str(path))]:
            try:
                self.discard(path)
                self._forget_note(path)
            except OSError as error:  # noqa: PERF203 - the others go
                if path not in self._undeletable:
                    self._undeletable.add(path)
                    _log.warning("%s, which no record needs, cannot be deleted: %s", path.name, error)

    def touch_notes(self) -> None:
        """Tell a clean-up on another machine with the same home that workers of this one may have these files."""
        for path in self._replaced:
            with contextlib.suppress(OSError):
                os.utime(_note_of(path))

    def _note(self, path: Path) -> None:
        """No record needs an owned model's files, or soon none will. path: the first one's."""
        if path not in self._replaced:
            _write_atomically(_note_of(path), platform.node().encode())
            self._replaced.append(path)

    def _forget_note(self, path: Path) -> None:
        _note_of(path).unlink(missing_ok=True)
        self._replaced.remove(path)

    def locate(self, path: str) -> Path:
        """The path of an owned file, absolute or relative to the models folder. Raises RemoteError USAGE outside it."""
        inside = Path(os.path.normpath(self._folder / check_path(path))).resolve()
        if inside == self._real or not inside.is_relative_to(self._real):
            raise RemoteError(ErrorCode.USAGE, f"{sanitize(path)!r} is not inside the models folder")
        return self._folder / inside.relative_to(self._real)

    def owns(self, path: str) -> bool:
        """Whether `path` says, absolutely or relatively, that it lies in the models folder."""
        return not Path(path).is_absolute() or Path(os.path.normpath(path)).is_relative_to(self._folder)

    def blob(self, sha256: str, parts: int = 1) -> Path:
        """Where a model with this checksum lies, or its first part."""
        return self._folder / numbered(f"{sha256}.gguf", 1, parts)

    def take_in(self, path: Path, sha256: str) -> Path:
        """Give an owned model's files the names that its checksum makes; the first one's path. Raises OSError."""
        files = files_of(path)
        blob = self.blob(sha256, len(files))
        if path != blob:
            self._note(blob)
            for file, target in zip(files, files_of(blob), strict=True):
                file.replace(target)
            sync_folder(blob.parent)
        return blob

    def incoming(self, model: str) -> Path:
        """Where a download goes whose checksum nobody knows yet; the same for every try."""
        return self._folder / f"incoming-{_name(model)}.gguf"

    def _record(self, model: str) -> Path:
        return self._folder / f"{_name(model)}.json"

    def _load(self, path: Path) -> ModelInfo | None:
        """None where there is no record; one that cannot be used is dropped."""
        try:
            info = decode(ModelInfo, json.loads(path.read_bytes()))
            if info.owned:
                info = dataclasses.replace(info, path=str(self.locate(info.path)))
        except FileNotFoundError:
            return None
        except (ProtocolError, json.JSONDecodeError, UnicodeDecodeError, RemoteError) as error:
            _log.warning("dropping the record %s: %s", path.name, error)
            self._drop(path)
            return None
        seen = _look(Path(info.path))
        if seen is None:
            _log.warning("dropping %s: its file %s is gone, or a part of it", info.model, info.path)
            self._drop(path)
            return None
        if info.owned:
            return info
        return dataclasses.replace(info, stamp=seen.stamp, sha256=info.sha256 if info.stamp == seen.stamp else "")

    def _drop(self, record: Path) -> None:
        record.unlink(missing_ok=True)
        self.changed.notify()


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + UNNEEDED)


def _is_own(note: Path) -> bool:
    """Whether a hive of this machine wrote it: another one that shares the home may have a use for the file."""
    with contextlib.suppress(OSError):
        return note.read_bytes() == platform.node().encode()
    return False


def _look(path: Path) -> Look | None:
    """None where a file of the model is not there, or this user cannot come to it."""
    try:
        return look(path)
    except (OSError, ValueError):
        return None


def _name(model: str) -> str:
    return hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _write_atomically(path: Path, content: bytes) -> None:
    """Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
