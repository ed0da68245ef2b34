"""`search`: models on the hub by words, with what each quantisation needs.

stdin: a SearchRequest. stdout: SearchAnswer, or a RemoteError.

Runs at the keeper, as a process of its own: what the hub sends, and the heads of files on it, are strangers' bytes.

Rules
- Three kinds of requests: one for the list, and for each model of it one for its files and one for the head of one.
- A model of which a request fails is shown with what is known of it; a hub that does not answer is an error.
- What a model needs is what `fit.needs` says of the metadata at the beginning of a file, which all its quantisations
  have alike. The API is https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

from rbee_remote.gguf.beginning import first_values
from rbee_remote.gguf.metadata import meta_of
from rbee_remote.hive.fit.needs import Estimate
from rbee_remote.hive.fit.scheduler import RAM, VRAM
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.hub import PUBLIC_HUB
from rbee_remote.hive.models.redirects import Guard
from rbee_remote.protocol import ErrorCode, ModelMeta, ProtocolError, RemoteError, decode, encode
from rbee_remote.protocol.quants import Candidate, models
from rbee_remote.protocol.retries import HUB_API_S
from rbee_remote.protocol.search import MOST_FOUND, Fits, FoundModel, FoundQuant, SearchAnswer, SearchRequest
from rbee_remote.sandbox import harden, limits
from rbee_remote.system.reader import end_with_reader

#: Bytes of a file that are read: the metadata before the vocabulary are some kilobytes.
HEAD_BYTES = 512 * 1024
_MOST_OF_ANSWER = 16 * 2**20
_MOST_MEMORY = 2**31
_AT_ONCE = 4
#: What a ref can name; the answer is shown to be copied into a command.
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def main(_: list[str]) -> int:
    """Raises RemoteError USAGE, DOWNLOAD_FAILED."""
    harden()
    if sys.platform.startswith("linux"):
        limits.lower(resource.RLIMIT_AS, _MOST_MEMORY)
    end_with_reader()
    try:
        request = decode(SearchRequest, json.load(sys.stdin))
    except (ProtocolError, ValueError) as error:
        raise RemoteError(ErrorCode.USAGE, str(error)) from error
    sys.stdout.write(json.dumps(encode(search(request))) + "\n")
    return 0


def search(request: SearchRequest) -> SearchAnswer:
    """Raises RemoteError DOWNLOAD_FAILED where the hub does not answer, or not with what it should."""
    hub = _Hub(request)
    limit = min(max(request.limit, 1), MOST_FOUND)
    query = {"search": request.words, "filter": "gguf", "sort": "downloads", "direction": "-1", "limit": str(limit)}
    listed = hub.ask("/api/models", query)
    if not isinstance(listed, list):
        raise _failed("its answer is no list")
    repos = [item for item in listed[:limit] if isinstance(item, dict) and _REPO.fullmatch(_text(item, "id"))]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return SearchAnswer(tuple(pool.map(hub.model, repos)))


class _Hub:
    def __init__(self, request: SearchRequest) -> None:
        self._request = request
        self._endpoint = (request.endpoint or os.environ.get("HF_ENDPOINT", "") or PUBLIC_HUB).rstrip("/")
        # A token is only sent over https; whoever has none sees what everybody sees.
        safe = urlsplit(self._endpoint).scheme == "https"
        self._headers = {"Authorization": f"Bearer {request.token}"} if request.token and safe else {}

    def ask(self, path: str, query: Mapping[str, str]) -> Any:
        """Raises RemoteError DOWNLOAD_FAILED."""
        try:
            with _client() as client:
                answer = client.get(f"{self._endpoint}{path}", params=dict(query), headers=self._headers)
                answer.raise_for_status()
                return answer.json()
        except httpx.HTTPStatusError as error:
            raise _failed(f"HTTP {error.response.status_code}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _failed(str(error) or type(error).__name__, network=False) from error
        except (ValueError, RecursionError) as error:
            raise _failed("its answer cannot be read") from error

    def model(self, item: dict[str, Any]) -> FoundModel:
        """A line of the list, with its files."""
        repo, found, commit = _text(item, "id"), list[Candidate](), "main"
        info: dict[str, Any] = {}
        with contextlib.suppress(RemoteError):
            answer = self.ask(f"/api/models/{quote(repo)}", {"blobs": "true"})
            info = answer if isinstance(answer, dict) else {}
            found, commit = models(_sizes(info), repo), _text(info, "sha") or "main"
        meta = self._meta(repo, commit, found)
        ctx = min(self._request.ctx, meta.n_ctx_train) if meta else 0
        downloads = item.get("downloads")
        return FoundModel(
            repo=repo,
            downloads=downloads if isinstance(downloads, int) else 0,
            gated=bool(info.get("gated", item.get("gated", False))),
            license=_license(info or item),
            architecture=meta.architecture if meta else "",
            ctx=ctx,
            quants=tuple(self._quant(each, meta, ctx) for each in sorted(found, key=lambda each: each.size or 0)),
        )

    def _meta(self, repo: str, commit: str, found: list[Candidate]) -> ModelMeta | None:
        """Of the smallest file, which all have alike; None where it cannot be read."""
        if not found or not self._request.rooms:
            return None
        name = min(found, key=lambda each: each.size or 0).name
        address = f"{self._endpoint}/{quote(repo)}/resolve/{quote(commit, safe='')}/{quote(name)}"
        try:
            return meta_of(first_values(_head(address, self._headers)))
        except (httpx.HTTPError, httpx.InvalidURL, RemoteError, ValueError):
            return None

    def _quant(self, each: Candidate, meta: ModelMeta | None, ctx: int) -> FoundQuant:
        fits = tuple(self._fits(each, meta, ctx))
        return FoundQuant(each.name, each.quant, each.size, len(each.group.files), fits)

    def _fits(self, each: Candidate, meta: ModelMeta | None, ctx: int) -> list[Fits]:
        if each.size is None or meta is None:
            return []
        found = []
        for room in self._request.rooms:
            estimate = Estimate(meta, each.size, memory=VRAM if room.gpus else RAM, gpus=room.gpus)
            needed = estimate.need(ctx, self._request.slots).total_mb
            free = None if room.free_mb is None else needed <= room.free_mb
            found.append(Fits(room.node, needed <= room.mb, needed, free))
        return found


def _head(address: str, headers: Mapping[str, str]) -> bytes:
    """The first bytes of a file. Raises httpx.HTTPError, RemoteError."""
    pieces, length = list[bytes](), 0
    with _client() as client:
        asked = {**headers, "Range": f"bytes=0-{HEAD_BYTES - 1}"}
        with client.stream("GET", address, headers=asked) as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                pieces.append(piece)
                length += len(piece)
                if length >= HEAD_BYTES:
                    break
    return b"".join(pieces)[:HEAD_BYTES]


def _client() -> httpx.Client:
    client = httpx.Client(timeout=HUB_API_S, follow_redirects=True, headers={"User-Agent": "rbee"})
    Guard(client, most_bytes=_MOST_OF_ANSWER)
    return client


def _sizes(info: Mapping[str, Any]) -> dict[str, int | None]:
    files = info.get("siblings")
    found: dict[str, int | None] = {}
    for file in files if isinstance(files, list) else []:
        if isinstance(file, dict) and (name := _text(file, "rfilename")) and name.isprintable():
            size = file.get("size")
            found[name] = size if isinstance(size, int) and size >= 0 else None
    return found


def _license(info: Mapping[str, Any]) -> str:
    tags = info.get("tags")
    found = [tag for tag in tags if isinstance(tag, str) and tag.isprintable()] if isinstance(tags, list) else []
    return next((tag.removeprefix("license:")[:60] for tag in found if tag.startswith("license:")), "")


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 300 else ""


def _failed(why: str, *, network: bool = True) -> RemoteError:
    message = f"the hub cannot be searched: {why}"
    hint = "try again" if network else "check the network, the proxy variables, and HF_ENDPOINT where it is set"
    return RemoteError(ErrorCode.DOWNLOAD_FAILED, message, hint=hint, details={"network": network})
