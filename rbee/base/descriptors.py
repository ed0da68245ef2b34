"""How many files and sockets this process may have open."""

from __future__ import annotations

import resource


def raise_descriptor_limit(wanted: int) -> None:
    """As far as one may without asking; 1,024 is what programs get that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
