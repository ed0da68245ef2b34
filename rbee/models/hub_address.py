"""Addresses of the hub's pages, as people copy them from a browser, as refs. Pure.

    huggingface.co/OWNER/REPO[:QUANT]                     hf:OWNER/REPO[:QUANT]
    huggingface.co/OWNER/REPO?show_file_info=FILE         hf:OWNER/REPO:FILE
    huggingface.co/OWNER/REPO/tree/REVISION[/FOLDER]      hf:OWNER/REPO[:FOLDER]@REVISION
    huggingface.co/OWNER/REPO/blob/REVISION/FILE          https://huggingface.co/OWNER/REPO/resolve/REVISION/FILE

Rules
- The page of a file is not the file: what stands behind `/blob/` lies at `/resolve/`, on the hub and on its mirrors.
- The branch `main` is what a ref without a revision means, so it is left out.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>.+)", re.IGNORECASE)
_REPO = re.compile(r"(?P<repo>[^/:@]+/[^/:@]+?)(?P<more>[:@].+?)?/?")
_TREE = re.compile(r"(?P<repo>[^/:@]+/[^/:@]+)/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*?))?/?")
_BLOB = re.compile(r"(?P<repo>/[^/]+/[^/]+)/blob/(?P<file>[^/]+/.+)")
#: What has pages of that form, and its files elsewhere.
_NO_HUBS = frozenset({"github.com", "www.github.com"})


def is_page(text: str) -> bool:
    """Whether `text` begins as an address of the hub does, with or without https://."""
    return _PAGE.match(text) is not None


def as_ref(text: str) -> str:
    """`text`, or the ref that it means as the address of a page of a repository."""
    page = _PAGE.fullmatch(text)
    if page is None:
        return text
    path, _, query = page["rest"].partition("#")[0].partition("?")
    if repo := _REPO.fullmatch(path):
        shown = parse_qs(query).get("show_file_info", [""])[0]
        return f"hf:{repo['repo']}" + (f":{shown}" if shown else repo["more"] or "")
    if tree := _TREE.fullmatch(path):
        folder, revision = unquote(tree["folder"] or ""), unquote(tree["revision"])
        at = "" if revision == "main" else f"@{revision}"
        return f"hf:{tree['repo']}" + (f":{folder}" if folder else "") + at
    return text if "://" in text else f"https://{text}"


def file_of_page(url: str) -> str:
    """The address of the file that a page of the hub, or of a mirror, shows; any other address as it is."""
    address = urlsplit(url)
    blob = _BLOB.fullmatch(address.path)
    if blob is None or address.hostname in _NO_HUBS:
        return url
    return address._replace(path=f"{blob['repo']}/resolve/{blob['file']}").geturl()
