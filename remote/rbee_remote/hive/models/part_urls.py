"""A split model behind an address: the other parts' addresses, by the first one's name, and what is promised there."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from rbee_remote.hive.models.fetch import content_length, interrupted
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import Wanted
from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.protocol.splits import parts_of


def parts_of_url(url: str) -> tuple[str, ...]:
    """Of an address that names a part: those of all parts, with the same query; else the one."""
    address = urlsplit(url)
    return tuple(address._replace(path=path).geturl() for path in parts_of(address.path))


def promised(client: httpx.Client, urls: Sequence[str]) -> tuple[Wanted, ...]:
    """Each part with the size that its server promises, where it does. So that a part which is missing shows before
    gigabytes have come. Raises RemoteError MODEL_NOT_FOUND, Retryable."""
    return tuple(Wanted(url, "", None, expected=_promised(client, url, len(urls))) for url in urls)


def _promised(client: httpx.Client, url: str, count: int) -> int | None:
    try:
        response = client.head(url, headers={"Accept-Encoding": "identity"})
    except httpx.TransportError as error:
        raise interrupted(error) from error
    except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise RemoteError(ErrorCode.DOWNLOAD_FAILED, f"{url} cannot be followed: {error}") from error
    if response.status_code in (404, 410):
        raise RemoteError(
            ErrorCode.MODEL_NOT_FOUND,
            f"{url}: HTTP {response.status_code}; it is one of {count} parts of a split model",
            hint="check that all parts are at that address, under the names that they came with",
        )
    return content_length(response) if response.status_code == 200 else None
