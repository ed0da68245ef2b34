# ruff: noqa: TRY004 - whatever is wrong with a value, its type too, is one kind of error to the caller
"""`wheel_indexes` of the inventory: where llama.cpp lies ready to use, and what vouches for what is fetched there."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

from rbee.base.settings import expand
from rbee_remote.protocol.load_options import COMPILED_BACKENDS

_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) ([A-Za-z0-9+/]+=*)")


@dataclass(frozen=True, slots=True)
class WheelIndex:
    """A folder with one part for each backend, `URL/BACKEND/llama-cpp-python/` (PEP 503).

    backend: which part is meant, "" for whichever is wanted. url: http, https or file, without a slash at the end.
    sha256: exactly these wheels. key: a public key as in `authorized_keys`, without the comment, which has signed
    `URL/SHA256SUMS`. Where there is neither, the index itself decides what runs.
    """

    url: str
    backend: str = ""
    sha256: tuple[str, ...] = ()
    key: str = ""

    @property
    def name(self) -> str:
        """The address without a password: what messages and `builds_from` call it."""
        parts = urllib.parse.urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def is_for(self, backend: str) -> bool:
        return self.backend in ("", backend)

    def vouchers(self) -> frozenset[str]:
        """Who answers for its wheels, as the wheel cache writes it down: hashes, or a key. None: nobody but itself.

        A node's name has no colon.
        """
        if self.key:
            return frozenset({f"signed:SHA256:{fingerprint(self.key)}"})
        return frozenset(f"sha256:{value}" for value in self.sha256)


def fingerprint(key: str) -> str:
    """Of a public key, as `ssh-keygen -l` shows it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return base64.b64encode(digest).rstrip(b"=").decode()


def check_wheel_indexes(value: Any) -> tuple[WheelIndex, ...]:
    """Raises ValueError."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(
            'expected a list of tables such as { backend = "cpu", url = "https://…", key = "ssh-ed25519 …" }'
        )
    return tuple(map(_index, value))


def _index(table: dict[str, Any]) -> WheelIndex:
    if unknown := sorted(table.keys() - {"backend", "url", "sha256", "key"}):
        raise ValueError(f"{unknown[0]!r} is not a key of an index, which has backend, url, and sha256 or key")
    for name in ("backend", "url"):
        if not isinstance(table.get(name), str):
            raise ValueError(f"an index needs {name}, as text in quotes")
    if "sha256" in table and "key" in table:
        raise ValueError("an index has sha256 or key, not both")
    if table["backend"] not in COMPILED_BACKENDS:
        raise ValueError(f"{table['backend']!r} is not a backend that wheels are for: {', '.join(COMPILED_BACKENDS)}")
    key = check_signing_key(table["key"]) if "key" in table else ""
    hashes = _hashes(table["sha256"]) if "sha256" in table else ()
    return WheelIndex(check_address(table["url"]), table["backend"], hashes, key)


def check_address(text: str) -> str:
    """The address of an index; a folder, absolute or below `~`, becomes one. Raises ValueError."""
    if text.startswith(("/", "~/")):
        return expand(text).as_uri().rstrip("/")
    if re.search(r"[\x00-\x20\x7f-\x9f]", text):
        raise ValueError(f"{text!r} is not an address")
    parts = urllib.parse.urlsplit(text)
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise ValueError(f"{text!r} is not a folder of this machine: write file:///PATH, or the path alone")
    if parts.scheme not in ("https", "http", "file") or not (parts.netloc or parts.scheme == "file"):
        raise ValueError(f"{text!r} is neither an address (https:, http:, file:) nor a folder (absolute, or below ~/)")
    if parts.query or parts.fragment:
        raise ValueError(f"{text!r} has a query or a fragment")
    return text.rstrip("/")


def check_signing_key(value: Any) -> str:
    """A line of a `.pub` file, without its comment. Raises ValueError."""
    found = _KEY.match(value) if isinstance(value, str) else None
    try:
        blob = base64.b64decode(found[2], validate=True) if found else b""
    except binascii.Error:
        blob = b""
    if found is None or not blob.startswith(len(found[1]).to_bytes(4, "big") + found[1].encode()):
        raise ValueError('key has to be a public key as in a .pub file: "ssh-ed25519 AAAA…"')
    return f"{found[1]} {found[2]}"


def _hashes(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise ValueError("sha256 has to be a hash, or a list of some")
    for item in values:
        if not isinstance(item, str) or not _SHA256.fullmatch(item):
            raise ValueError(f"{item!r} is not a SHA-256, which has 64 digits, 0 to 9 and a to f")
    return tuple(values)
