"""The HTTP library that huggingface_hub brings along: httpx2 since its 2.0, httpx before. Their interfaces are one.

With the hub client's own library there is one implementation of TLS, proxies and redirects, and nothing more to
install. Importing this module takes a while: only the `download` process does.
"""

from __future__ import annotations

try:
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]

__all__ = ["httpx"]
