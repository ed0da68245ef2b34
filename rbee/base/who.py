"""Who works at this keeper: the user and the machine, for requests to nodes and for the audit log."""

from __future__ import annotations

import os
from functools import cache
from urllib.parse import quote


def who() -> str:
    """`user@host`, percent-encoded: what requests to a node say in HEADER_WHO, for its own record."""
    return f"{quote(user())}@{quote(host())}"


@cache
def user() -> str:
    """By the user database; a variable may say anything."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@cache
def host() -> str:
    return os.uname().nodename
