"""Which names of hosts and users may come near a shell. ssh's own files can put both into a command that one runs.

Rules
- OpenSSH's `valid_hostname` and `valid_ruser`: nothing that a shell takes for more than a part of a word. An inventory
  is data, which people share, and `ProxyCommand` and `Match exec` run what %h, %n and %r stand for (CVE-2023-51385).
- Stricter: no pattern that a shell would put names of files in place of, which may begin with `-`, and in a user's name
  `$` only at its end, where machines in a Windows domain have it: a variable may be a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTROL = r"\x00-\x1f\x7f-\x9f"
#: OpenSSH's characters for both, and those of patterns.
_SHELL = r"'`\";&<>|(){}*?\[\]"
_HOST = re.compile(rf"(?!-)[^\s{_CONTROL}{_SHELL}$\\,]+")
_USER = re.compile(rf"(?!-)[^\s{_CONTROL}{_SHELL}$]*[^\s{_CONTROL}{_SHELL}\\]")
_TARGET = re.compile(r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:]+))(?::(?P<port>\d+))?/?")


@dataclass(frozen=True, slots=True)
class Target:
    """A jump host as it is written: [USER@]HOST[:PORT]."""

    host: str
    user: str | None
    port: int | None


def check_host_name(text: str) -> str:
    """A host's name, address or alias. Raises ValueError."""
    if not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name")
    return text


def check_user_name(text: str) -> str:
    """A login name. Raises ValueError."""
    if not _USER.fullmatch(text):
        raise ValueError(f"{text!r} is not a login name")
    return text


def read_target(text: str) -> Target:
    """Raises ValueError."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a jump host")
    user = match["user"]
    return Target(
        check_host_name(match["v6"] or match["host"]),
        user if user is None else check_user_name(user),
        int(match["port"]) if match["port"] else None,
    )
