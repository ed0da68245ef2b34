"""Where a request for a model may go, whoever sends it there: each is looked at before it goes out.

Rules
- What began on https stays on it, and nothing but https and http is spoken.
- A token goes out over https alone. (That it stays with the server that it is for, the HTTP library sees to: it drops
  the header where a redirect leads to another scheme, host or port.)
- A redirect from elsewhere leads neither to this machine nor to a private or link-local address, where clouds tell
  secrets to whoever asks. Names are not looked up for this: over https the server has to prove that a name is its own.
"""

from __future__ import annotations

import ipaddress
import socket

from rbee_remote.hive.http_library import httpx
from rbee_remote.protocol import ErrorCode, RemoteError


class Guard:
    """Watches one client, which follows its redirects itself and has one request under way at a time."""

    def __init__(self, client: httpx.Client) -> None:
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], self._before],
            "response": [*hooks["response"], self._after],
        }
        self._came_from: httpx.URL | None = None

    def _before(self, request: httpx.Request) -> None:
        """Raises RemoteError DOWNLOAD_FAILED."""
        came_from, self._came_from = self._came_from, None
        if request.url.scheme not in ("https", "http"):
            raise _refused(came_from, f"{request.url.scheme}: is not fetched")
        if "Authorization" in request.headers and request.url.scheme != "https":
            raise _refused(came_from, "a hub token is only sent over https")
        if came_from is None:
            return
        if came_from.scheme == "https" and request.url.scheme != "https":
            raise _refused(came_from, "it leads to an address that is not https")
        if is_inside(request.url.host) and not is_inside(came_from.host):
            raise _refused(came_from, f"it leads to {request.url.host}, which is no address of the internet")

    def _after(self, response: httpx.Response) -> None:
        self._came_from = response.request.url if response.has_redirect_location else None


def _refused(url: httpx.URL | None, why: str) -> RemoteError:
    """url: what led to the request that is refused, None where nothing did."""
    what = f"{url.scheme}://{url.netloc.decode()}{url.path} is not followed" if url else "the request is refused"
    return RemoteError(
        ErrorCode.DOWNLOAD_FAILED, f"{what}: {why}", hint="check the model's address, and HF_ENDPOINT where it is set"
    )


def is_inside(host: str) -> bool:
    """This machine, or an address of the network around it. Also as `127.1` or `0x7f000001`, which resolvers take."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return not address.is_global
