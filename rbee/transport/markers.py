"""Scripts between markers: how they are wrapped for the shell, and how their answer is found in what comes back. Pure.

Rules
- The shell is `/bin/sh` and reads its script from stdin. It may read ahead (dash takes blocks), so a script is one
  compound command, and nothing follows it on stdin before the shell has printed its begin marker.
- Everything before the begin marker is noise, everything up to the end marker is the answer; the end marker carries
  the exit status. The script's text never contains a marker as a whole, so an echo of it is no marker.
- Rc files run before the shell does. They may print, and read a line or two: empty lines go first, for those. What they
  leave to `/bin/sh` (options, exported functions) is undone.
"""

from __future__ import annotations

import re
import secrets

from rbee.base.errors import NodeError
from rbee_remote.protocol import ErrorCode

#: Most bytes that may come before the answer.
MAX_NOISE = 4 * 2**20

#: Where a login shell is told what to do before a command.
RC_FILES = "the account's rc files (~/.bashrc, ~/.zshenv, ~/.config/fish/config.fish, ~/.tcshrc)"

#: What goes first: for rc files that read stdin, and for those that start zsh, which then reads what `/bin/sh` should.
EMPTY_LINES = "\n" * 8
_BE_SH = '[ -z "$ZSH_VERSION" ] || emulate sh\n'

#: Where `/bin/sh` is bash, it takes over options (SHELLOPTS) and functions (BASH_FUNC_…) from the environment.
_UNDO = (
    "set +efuvx; unset CDPATH; unset -f awk cat cd chmod command cut date dd df echo env find getconf getent grep "
    "head id kill ls mkdir mktemp mv nproc printf ps pwd python3 read rm sed sleep sort stat sync tail test timeout "
    "touch tr true uname wait wc 2>/dev/null"
)


def new_nonce() -> str:
    """32 hex digits that no output contains by chance."""
    return secrets.token_hex(16)


def guarded(script: str, nonce: str) -> bytes:
    """`script` with an empty stdin, between markers, ended with its process group when stdin ends."""
    return f"""{EMPTY_LINES}{_BE_SH}{{ {_UNDO}; printf '%s:%s\\n' rbee-begin {nonce}
exec 3<&0
( while read -r line; do :; done <&3; kill -s TERM -- -$$ || kill -s TERM $$ ) >/dev/null 2>&1 &
( {script}
) </dev/null 3<&-
code=$?; printf '%s:%s\\n' rbee-end {nonce} >&2
printf '%s:%s:%d\\n' rbee-end {nonce} $code; kill $! 2>/dev/null; exit 0
}}
""".encode()


def fed(script: str, nonce: str) -> bytes:
    """`script` between markers, with the stdin that follows once the begin marker was seen."""
    return f"""{EMPTY_LINES}{_BE_SH}{{ {_UNDO}; printf '%s:%s\\n' rbee-begin {nonce}
( {script}
)
printf '%s:%s:%d\\n' rbee-end {nonce} $?; exit 0
}}
""".encode()


def checked(check: str, words: str) -> bytes:
    """`exec words`, with the stdin that follows, where the script `check` ends with 0; else the shell ends with 127."""
    return f"""{EMPTY_LINES}{_BE_SH}( {_UNDO}
{check}
) </dev/null || exit 127
exec {words}
""".encode()


class Markers:
    """Finds noise, answer and status in a stream of bytes. Pure: bytes in, bytes out."""

    def __init__(self, nonce: str) -> None:
        self.noise = bytearray()
        self.status: int | None = None
        self.begun = False
        self._begin = f"rbee-begin:{nonce}\n".encode()
        self._end = re.compile(rb"rbee-end:" + nonce.encode() + rb":(\d{1,3})\n")
        self._end_start = f"rbee-end:{nonce}:".encode()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes of the answer that are certain now. What could be the start of a marker is held back."""
        held = self._held + data if self.begun else self._after_begin(data)
        if self.status is not None:
            self._held = b""
            return b""
        if match := self._end.search(held):
            self.status = int(match[1])
            self.noise += held[match.end() :]
            self._held = b""
            return held[: match.start()]
        keep = self._undecided(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> bytes:
        """The stream ended: whatever was held back is answer after all."""
        held, self._held = self._held, b""
        return held

    def _after_begin(self, data: bytes) -> bytes:
        """What follows the begin marker; b"" as long as there is none, and all is noise."""
        searched = max(len(self.noise) - len(self._begin), 0)
        self.noise += data
        start = self.noise.find(self._begin, searched)
        if start >= 0:
            self.begun = True
            held = bytes(self.noise[start + len(self._begin) :])
            del self.noise[start:]
            return held
        if len(self.noise) > MAX_NOISE:
            raise prints_without_end()
        return b""

    def _undecided(self, held: bytes) -> int:
        """How many bytes at the end of `held` may belong to an end marker."""
        start = held.rfind(self._end_start)
        if start >= 0 and len(held) - start <= len(self._end_start) + len("255"):
            return len(held) - start
        for length in range(min(len(held), len(self._end_start) - 1), 0, -1):
            if held.endswith(self._end_start[:length]):
                return length
        return 0


def prints_without_end() -> NodeError:
    return NodeError(
        ErrorCode.NODE_UNSUPPORTED,
        "the node's login shell prints without end",
        hint=f"look for what prints in {RC_FILES}, or for a ForceCommand in its sshd_config",
    )
