"""A file onto a node through a shell: staged beside its target, continued after a break, checked, renamed into place.

Rules
- The part's name holds the keeper and the content's digest, so that what is continued is always the same file.
- Bytes are written at their own offset and never truncated: two uploads of one file at once write the same bytes.
- A part becomes the target only after its whole SHA-256 was computed on the node.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rbee.base.errors import ConnectError, NodeError
from rbee.base.retries import UPLOAD_CHECK_RATE, UPLOAD_CHECK_S, UPLOAD_PIECE_S, UPLOAD_READY_S, UPLOAD_TRIES
from rbee.transport.connection import OnBytes, quote
from rbee.transport.script import Shell, ShellConnection
from rbee_remote.protocol import ErrorCode

#: Bytes of one piece; a part is continued from a whole number of them.
PIECE = 2**20

_FAILED = re.compile(r"failed \w+ ([0-9]{1,18}|unknown) (.*)", re.DOTALL)
_NO_SPACE = ("no space left", "quota exceeded", "disc quota", "file too large")


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes where. source: a file or the content itself. size: bytes. part: the staging file on the node."""

    source: Path | bytes
    size: int
    target: str
    part: str
    sha256: str
    mode: int

    @classmethod
    def of(cls, source: Path | bytes, target: str, *, sha256: str, mode: int, keeper_id: str) -> Upload:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return cls(source, size, target, part_of(target, sha256=sha256, keeper_id=keeper_id), sha256, mode)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def part_of(target: str, *, sha256: str, keeper_id: str) -> str:
    """Where a file lies while it is on its way to `target`."""
    return f"{target}.part-{keeper_id}-{sha256[:8]}"


#: Says `ready PIECES FREE_KB` (what it has, and the room that is left), then reads the content from there on on stdin.
#: Ends with one line: done, short, corrupt, or `failed STEP FREE_KB MESSAGE`.
_SCRIPT = r"""LC_ALL=C; export LC_ALL; umask 077
hash_of() {
  if command -v sha256sum; then sha256sum <"$1"
  elif command -v shasum; then shasum -a 256 <"$1"
  else openssl dgst -sha256 -r <"$1"
  fi 2>/dev/null | sed -n 's/^\([0-9a-f]\{64\}\).*/\1/p'
}
room() {
  free=$(df -Pk "${target%/*}" 2>/dev/null | sed -n '2s/.* \([0-9][0-9]*\)  *[0-9]*% .*/\1/p')
  echo "${free:-unknown}"
}
fail() { printf 'failed %s %s %s\n' "$1" "$(room)" "$(printf %s "$2" | tr '\n' ' ')"; exit 1; }
# Another upload of the same file may have put it in place meanwhile, and taken the part with it.
overtaken() { [ "$(hash_of "$target")" != "$sha256" ] || { rm -f "$part"; echo done; exit 0; }; }
message=$(mkdir -p "${target%/*}" 2>&1) || fail mkdir "$message"
[ ! -d "$target" ] || fail mkdir "$target is a folder"
have=0
[ ! -f "$part" ] || have=$(($(wc -c <"$part")))
if [ "$have" -gt "$size" ]; then rm -f "$part"; have=0; fi
pieces=$((have / 1048576))
printf 'ready %s %s\n' "$pieces" "$(room)"
message=$(dd of="$part" bs=1048576 seek="$pieces" conv=notrunc 2>&1) || fail write "$message"
size_now=$(wc -c 2>&1 <"$part") || { overtaken; fail write "$size_now"; }
[ "$((size_now))" -ge "$size" ] || { overtaken; echo short; exit 1; }
sync "$part" >/dev/null 2>&1
[ "$(hash_of "$part")" = "$sha256" ] || { overtaken; rm -f "$part"; echo corrupt; exit 1; }
message=$(chmod "$mode" "$part" 2>&1 && mv -f "$part" "$target" 2>&1) || { overtaken; fail rename "$message"; }
echo done
"""


def _script(upload: Upload) -> str:
    values = {
        "target": upload.target,
        "part": upload.part,
        "size": str(upload.size),
        "sha256": upload.sha256,
        "mode": f"{upload.mode:o}",
    }
    return "".join(f"{name}={quote(value)}\n" for name, value in values.items()) + _SCRIPT


async def send(connection: ShellConnection, upload: Upload, on_bytes: OnBytes | None) -> None:
    """Put the file on the node. A part that turns out corrupt is thrown away, once.

    Raises as `Connection.put`.
    """
    for left in reversed(range(UPLOAD_TRIES)):
        continued, outcome = await _send_once(connection, upload, on_bytes)
        if outcome == "done":
            return
        if outcome == "corrupt" and continued and left:
            continue
        raise _failure(upload, outcome)


async def _send_once(connection: ShellConnection, upload: Upload, on_bytes: OnBytes | None) -> tuple[bool, str]:
    """(whether a part was continued, the last line of the script)."""
    async with connection.feed_script(_script(upload)) as (shell, lines):
        async with _patience(UPLOAD_READY_S):
            ready = await anext(lines, b"failed start the script ended at once")
        match ready.decode(errors="replace").split():
            case ["ready", pieces, free] if re.fullmatch(r"[0-9]{1,9}", pieces):
                start = min(int(pieces) * PIECE, upload.size)
            case _:
                return False, ready.decode(errors="replace")
        if re.fullmatch(r"[0-9]{1,18}", free) and int(free) * 1024 < upload.size - start:
            raise disk_full(upload, free=int(free) * 1024)

        async with _patience(UPLOAD_PIECE_S) as patience:
            feeding = asyncio.create_task(_feed(upload, start, shell, patience, on_bytes), name="feed upload")
            try:
                outcome = await anext(lines, b"failed start the script ended without a word")
                if outcome == b"short":
                    await feeding  # its error says why: the source could not be read
                return start > 0, outcome.decode(errors="replace")
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)  # its failure showed in the outcome


async def _feed(upload: Upload, start: int, shell: Shell, patience: asyncio.Timeout, on_bytes: OnBytes | None) -> None:
    """Send the content from `start` on; each piece that is taken buys time for the next."""
    now = asyncio.get_running_loop().time
    try:
        with upload.open() as source:
            source.seek(start)
            done = start
            while piece := await asyncio.to_thread(source.read, PIECE):
                await shell.write(piece)
                patience.reschedule(now() + UPLOAD_PIECE_S)
                done += len(piece)
                if on_bytes is not None:
                    on_bytes(done, upload.size)
        patience.reschedule(now() + UPLOAD_CHECK_S + upload.size / UPLOAD_CHECK_RATE)
    finally:
        shell.write_eof()


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """Raises ConnectError when the node takes longer; it can be given more."""
    try:
        async with asyncio.timeout(seconds) as patience:
            yield patience
    except TimeoutError as error:
        raise ConnectError(
            ErrorCode.CONNECTION_TIMEOUT,
            "the node stopped accepting the file without an error",
            hint="its disk or the network hangs; what has arrived stays there, and the next try goes on from it",
        ) from error


def _failure(upload: Upload, outcome: str) -> NodeError:
    found = _FAILED.fullmatch(outcome)
    free, said = (found[1], found[2]) if found else ("", outcome)
    if any(text in said.lower() for text in _NO_SPACE):
        return disk_full(upload, free=int(free) * 1024 if free.isdecimal() else None)
    if outcome == "corrupt":
        message, said = f"{upload.target} arrived with another SHA-256 than it should have", ""
    elif outcome == "short":
        message, said = "the file became shorter while it was sent", ""
    else:
        message = f"{upload.target} cannot be written"
    return NodeError(
        ErrorCode.BOOTSTRAP_FAILED,
        message,
        hint="check that the node's home for rbee is on a disk you may write to",
        details={"said": said.strip()} if said else {"sha256": upload.sha256},
    )


def disk_full(upload: Upload, *, free: int | None = None) -> NodeError:
    """free: bytes, None when nobody said."""
    needed_mb = -(-upload.size // 10**6)
    details: dict[str, object] = {"path": upload.target, "needed_mb": needed_mb}
    message = f"the node's disk is full: a file of {needed_mb} MB does not fit"
    if free is not None:
        details["free_mb"] = free // 10**6
        message += f", {free // 10**6} MB are free"
    return NodeError(
        ErrorCode.DISK_FULL,
        message,
        hint="free some space there (`rbee models rm`), or set `home` to a larger disk in the inventory",
        details=details,
    )
