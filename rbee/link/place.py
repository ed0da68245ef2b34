"""Where the link's socket lies, and what client and server have to have in common.

Rules
- Imported by every command: nothing heavy, nothing of rbee.
"""

from __future__ import annotations

import os
import socket
import sys

#: Below rbee's home.
FOLDER = "link"
SOCKET = "link.sock"
LOCK = "link.lock"
#: Commands that go over the link. Others, and what of these cannot, go the direct way.
COMMANDS = frozenset({"infer", "workers", "nodes", "top"})
#: "off": no command asks a holder or leaves one behind. "on": one is left behind without a terminal as well.
VARIABLE = "RBEE_LINK"
#: Beginnings of names of variables, and names: where one of them differs, a command would do something else there.
_PREFIXES = ("RBEE_", "HF_", "HUGGING_FACE_", "PIP_", "UV_")
_NAMES = frozenset({
    "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "CXX", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
})  # fmt: skip
#: What says how a terminal is written to; a renderer that runs elsewhere is told of them.
_OF_TERMINALS = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")


def home() -> str | None:
    """rbee's home as `Settings.from_environment` has it, None for one that is not to be had from variables alone."""
    chosen = os.environ.get("RBEE_HOME")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen)) if chosen[:2] in ("~", "~/") else os.path.abspath(chosen)
    user = os.environ.get("HOME")
    return os.path.join(os.path.abspath(user), ".rbee") if user else None


def environment() -> dict[str, str]:
    """The variables that matter. SSH_AUTH_SOCK is none of them: a connection that is open needs no agent."""
    found = {
        name: value
        for name, value in os.environ.items()
        if name != VARIABLE and (name.startswith(_PREFIXES) or name.upper() in _NAMES)
    }
    return {**found, **own_home()}


def own_home() -> dict[str, str]:
    """$RBEE_HOME, if it is there, for a process in another folder."""
    return {"RBEE_HOME": home() or ""} if os.environ.get("RBEE_HOME") else {}


def of_terminal() -> dict[str, str]:
    """The variables by which a terminal is written to."""
    return {name: os.environ[name] for name in _OF_TERMINALS if name in os.environ}


def code() -> list[object]:
    """Which rbee this is: two are the same where their files are. An update makes the files anew."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = os.stat(os.path.join(here, "__init__.py"))
    return [here, found.st_ino, found.st_ctime_ns]


class Folder:
    """The link's folder, held open, so that its socket has a short path however long the folder's is: a socket's path
    has 108 bytes at most. Used as `with Folder(…) as path_of`."""

    def __init__(self, home: str) -> None:
        self._folder = os.path.join(home, FOLDER)
        self._descriptor = -1

    def __enter__(self) -> str:
        """A path of the socket. Raises OSError."""
        path = os.path.join(self._folder, SOCKET)
        if len(os.fsencode(path)) < 100 or not os.path.isdir("/proc/self/fd"):
            return path
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{SOCKET}"

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end; (0, our own) where the system does not tell. Raises OSError."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, os.geteuid()
    three = connection.getsockopt(socket.SOL_SOCKET, option, 12)
    return int.from_bytes(three[:4], sys.byteorder), int.from_bytes(three[4:8], sys.byteorder)
