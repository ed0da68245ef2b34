"""Puts wheels of the cache into an index that others fetch them from: a folder, here or on another machine.

Rules
- What is there stays; a wheel of the same name is replaced. Links, hashes and wheels change together, in a moment.
- Two at once both succeed: who finds that the index has changed since it looked looks again.
- A signature vouches for all that SHA256SUMS names: with a key, nothing stays in it that this key has not signed.
- What a machine says of its index is checked before it becomes a line of ours.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rbee.base.errors import ConfigError, NodeError, RbeeError
from rbee.base.events import Emit
from rbee.base.files import LocalFile
from rbee.setup.base.put_files import put_files
from rbee.setup.index import files as index_files
from rbee.setup.index import scripts as index_scripts
from rbee.setup.index.files import SIGNATURE, SUMS
from rbee.setup.index.signature import Signer
from rbee.transport.connection import Connection
from rbee_remote.protocol import ErrorCode

#: How often the index may change between looking and changing it.
TRIES = 20
#: Seconds for a script, which may wait for another push or read a wheel of gigabytes.
SCRIPT_S = 300.0
_PUBLIC = 0o644
#: What lies ready to be part of an index, and how many of those are looked at.
_READY = re.compile(rf"{re.escape(index_scripts.INCOMING)}[0-9a-f]{{12}}-[0-9]{{1,3}}")
_MOST_READY = 50
_WHERE = "name a folder that is yours, on a disk with room"


@dataclass(frozen=True, slots=True)
class Offer:
    """A wheel that is to be in the index. path: there."""

    backend: str
    path: str
    file: LocalFile


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of it. root: the index's absolute path. added, replaced, unchanged: paths of wheels. total: of all."""

    root: str
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]
    total: int


@dataclass(frozen=True, slots=True)
class _Index:
    """What is in it. digest: of SHA256SUMS, "" for none. is_ours: its signature is by the key that signs now."""

    wheels: dict[str, str]
    digest: str
    is_signed: bool
    is_ours: bool


@dataclass(slots=True)
class Publisher:
    """connection: to where the index lies. folder: its path there. where: it in words. signer: None to sign nothing."""

    connection: Connection
    folder: str
    where: str
    signer: Signer | None
    emit: Emit
    _root: str = field(default="", init=False)
    _here: dict[str, str] = field(default_factory=dict, init=False)

    async def push(self, offers: Sequence[Offer]) -> Pushed:
        """Raises NodeError, ConfigError for a signature that this push would break or misuse, ConnectError."""
        await self._prepare(offers)
        await self._finish()
        self._check(await self._entries(), offers)
        missing = [offer for offer in offers if self._here.get(offer.path) != offer.file.sha256]
        for _ in range(TRIES):
            await self._upload([(offer.file, self._ready(offer)) for offer in missing])
            before = await self._entries()
            self._check(before, offers)
            if await self._commit(before, offers, missing):
                return self._outcome(before.wheels, offers)
        raise NodeError(ErrorCode.IN_USE, f"{self.where} keeps being changed by others", hint="try again later")

    async def _prepare(self, offers: Sequence[Offer]) -> None:
        backends = sorted({offer.backend for offer in offers})
        script = index_scripts.prepare(self.folder, backends, [offer.path for offer in offers])
        foreign = []
        for line in (await self._run(script)).decode(errors="replace").splitlines():
            match line.split(" ", 2):
                case ["root", *_]:
                    self._root = line.removeprefix("root ")
                case ["foreign", *_]:
                    foreign.append(line.removeprefix("foreign "))
                case ["wheel", digest, path]:
                    self._here[path] = digest
        if not self._root.startswith("/"):
            raise NodeError(ErrorCode.INVALID_RESPONSE, f"{self.where}: the machine does not say where that is")
        if foreign:
            raise NodeError(
                ErrorCode.BOOTSTRAP_FAILED,
                f"{self.where} is no index of wheels: it has {foreign[0]}",
                hint="name a folder that is empty or not there yet, or an index that `rbee wheels push` has made",
            )

    async def _finish(self) -> None:
        """What a push that was killed between its last two renames left undone: the signature is of SHA256SUMS that
        still lie ready."""
        if self.signer is None:
            return
        sums, signature = await self._read(SUMS), await self._read(SIGNATURE)
        if not signature or await self.signer.has_signed(sums, signature):
            return
        names = (await self._run(index_scripts.ready(self._root))).decode(errors="replace").splitlines()
        for name in [name for name in names if _READY.fullmatch(name)][:_MOST_READY]:
            if await self.signer.has_signed(await self._read(name), signature):
                seen = hashlib.sha256(sums).hexdigest() if sums else ""
                await self._run(index_scripts.commit(self._root, seen, {name: SUMS}))
                return

    async def _read(self, name: str) -> bytes:
        content = await self._run(index_scripts.read(self._root, name))
        if len(content) > index_files.LONGEST:
            raise NodeError(ErrorCode.INVALID_RESPONSE, f"{self.where}: {name} is larger than an index's can be")
        return content

    async def _entries(self) -> _Index:
        sums, signature = await self._read(SUMS), await self._read(SIGNATURE)
        wheels = index_files.read(sums.decode(errors="replace"), self.where)
        is_ours = bool(self.signer and signature and await self.signer.has_signed(sums, signature))
        return _Index(wheels, hashlib.sha256(sums).hexdigest() if sums else "", bool(signature), is_ours)

    def _check(self, index: _Index, offers: Sequence[Offer]) -> None:
        """Raises ConfigError for a signature that this push would break or misuse."""
        if self.signer is None and index.is_signed:
            raise ConfigError(
                f"{self.where} is signed, and without its key nothing can be added to it",
                hint="--sign KEYFILE, with the key that has signed it",
            )
        others = sorted(index.wheels.keys() - {offer.path for offer in offers})
        if self.signer and not index.is_ours and (others or index.is_signed):
            raise ConfigError(
                f"{self.where} "
                + (
                    "is not signed by this key"
                    if index.is_signed
                    else f"has wheels that nobody has signed: {others[0]}"
                ),
                hint="a signature vouches for all that is there: push to an empty folder, or see what is in this one, "
                f"and remove {SIGNATURE} and from {SUMS} what you do not trust",
            )

    async def _commit(self, before: _Index, offers: Sequence[Offer], missing: Sequence[Offer]) -> bool:
        """Whether the index was what it was before; then it has the wheels now."""
        after = before.wheels | {offer.path: offer.file.sha256 for offer in offers}
        sums = index_files.write(after).encode()
        texts = {
            index_files.page_path(backend): index_files.page(after, backend).encode()
            for backend in sorted({path.partition("/")[0] for path in after})
        }
        if self.signer:
            texts[SIGNATURE] = await self.signer.sign(sums)
        texts[SUMS] = sums
        token = secrets.token_hex(6)
        ready = {f"{index_scripts.INCOMING}{token}-{number}": name for number, name in enumerate(texts)}
        try:
            for name, final in ready.items():
                await self._put(name, texts[final])
            moves = {self._ready(offer).removeprefix(f"{self._root}/"): offer.path for offer in missing}
            said = await self._run(index_scripts.commit(self._root, before.digest, moves | ready))
        except BaseException:
            await self._discard(list(ready))
            raise
        if said.strip() == b"done":
            return True
        await self._discard(list(ready))
        return False

    def _outcome(self, before: dict[str, str], offers: Sequence[Offer]) -> Pushed:
        known = {offer.path: before.get(offer.path) for offer in offers}
        same = {offer.path for offer in offers if known[offer.path] == offer.file.sha256}
        added = tuple(path for path, digest in known.items() if digest is None)
        replaced = tuple(path for path, digest in known.items() if digest and path not in same)
        return Pushed(self._root, added, replaced, tuple(sorted(same)), len(before.keys() | known.keys()))

    def _ready(self, offer: Offer) -> str:
        """Where a wheel lies until the index names it: a push that was broken off is continued there."""
        folder = offer.path.rpartition("/")[0]
        return f"{self._root}/{folder}/{index_scripts.INCOMING}{offer.file.sha256[:16]}"

    async def _upload(self, files: Sequence[tuple[LocalFile, str]]) -> None:
        text = f"sending wheels to {self.where}"
        with self._translated():
            await put_files(self.connection, files, key="push", text=text, emit=self.emit, mode=_PUBLIC)

    async def _put(self, name: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        with self._translated():
            await self.connection.put(content, f"{self._root}/{name}", sha256=digest, mode=_PUBLIC)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What a node's home would be advised about is said of the index."""
        try:
            yield
        except NodeError as error:
            is_full = error.code is ErrorCode.DISK_FULL
            said = "its disk is full" if is_full else error.details.get("said") or error.message
            raise NodeError(
                error.code,
                f"{self.where} cannot be written: {said}",
                hint=_WHERE,
                details={key: value for key, value in error.details.items() if key != "said"},
            ) from error

    async def _discard(self, names: Sequence[str]) -> None:
        """What lies ready in vain; what cannot be removed now goes with a push of another day."""
        with suppress(RbeeError):
            await self.connection.run(index_scripts.discard(self._root, names))

    async def _run(self, script: str) -> bytes:
        """What a script prints. Raises NodeError with the last line of what it complains about."""
        result = await self.connection.run(script, timeout=SCRIPT_S)
        if result.status == 0:
            return result.stdout
        said = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        raise NodeError(
            ErrorCode.DISK_FULL if said and "no space left" in said[-1].lower() else ErrorCode.BOOTSTRAP_FAILED,
            f"{self.where} cannot be written: {said[-1][:300] if said else f'status {result.status}'}",
            hint=_WHERE,
        )
