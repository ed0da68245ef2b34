"""Where a request for a model may go, whoever sends it there, and how much its answer may be: each is looked at before
it goes out, and each answer before it is read.

Rules
- What began on https stays on it, and nothing but https and http is spoken.
- A token goes out over https alone. (That it stays with the server that it is for, the HTTP library sees to: it drops
  the header where a redirect leads to another scheme, host or port.)
- A redirect from elsewhere leads neither to this machine nor to a private or link-local address, where clouds tell
  secrets to whoever asks. Names are not looked up for this: over https the server has to prove that a name is its own.
- Nothing is unpacked: a MiB of gzip is a GiB of memory. Packed answers are not asked for, and refused where they come.
- What the HTTP library reads as a whole has a bound: what comes with a redirect always, and what `Guard` is told to.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from rbee_remote.hive.models.http_library import httpx
from rbee_remote.protocol import ErrorCode, RemoteError

#: Bytes that may come with a redirect: usually a sentence, which nobody reads.
MOST_OF_REDIRECT = 64 * 1024


class Guard:
    """Watches one client, which follows its redirects itself and has one request under way at a time.

    most_bytes: of an answer, None where its reader takes it piece by piece.
    """

    def __init__(self, client: httpx.Client, *, most_bytes: int | None = None) -> None:
        self._most_bytes = most_bytes
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], self._before],
            "response": [*hooks["response"], self._after],
        }
        self._came_from: httpx.URL | None = None

    def _before(self, request: httpx.Request) -> None:
        """Raises RemoteError DOWNLOAD_FAILED."""
        came_from, self._came_from = self._came_from, None
        request.headers["Accept-Encoding"] = "identity"
        if request.url.scheme not in ("https", "http"):
            raise _refused(came_from, f"{request.url.scheme}: is not fetched")
        if "Authorization" in request.headers and request.url.scheme != "https":
            raise _refused(came_from, "a hub token is only sent over https")
        if came_from is None:
            return
        if came_from.scheme == "https" and request.url.scheme != "https":
            raise _refused(came_from, "it leads to an address that is not https")
        if is_inside(request.url.host) and not is_inside(came_from.host):
            raise _refused(came_from, f"it leads to {request.url.host}, which is not a public address")

    def _after(self, response: httpx.Response) -> None:
        """Raises RemoteError DOWNLOAD_FAILED, and so may reading the answer."""
        url, is_redirect = response.request.url, response.has_redirect_location
        if response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
            raise _refused(url, "its answer is compressed, although rbee did not ask for that")
        most = MOST_OF_REDIRECT if is_redirect else self._most_bytes
        if most is not None:
            response.stream = _Bounded(response.stream, most, _refused(url, f"its answer is longer than {most} bytes"))
        self._came_from = url if is_redirect else None


class _Bounded(httpx.SyncByteStream):
    """An answer that ends with `error` where it is longer than `most` bytes."""

    def __init__(self, stream: object, most: int, error: RemoteError) -> None:
        assert isinstance(stream, httpx.SyncByteStream)
        self._stream, self._most, self._error = stream, most, error

    def __iter__(self) -> Iterator[bytes]:
        left = self._most
        for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise self._error
            yield piece

    def close(self) -> None:
        self._stream.close()


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
