"""Model refs: how a user names a model, and where it can come from. Pure; the built-in names lie in `models.toml`.

    smollm2:135m                                  a built-in name
    hf:OWNER/REPO[:QUANT or FILE][@REVISION]      a file of a repository on the hub
    file:/PATH                                    a file that is on the node
    https://HOST/PATH                             a file behind a URL
    ollama:NAME[:TAG]                             what Ollama has on the node

The addresses of the hub's pages are taken as well: `hub_address`.

Rules
- Of a split model, any part's name stands for the first one's.
- A ref that was parsed is safe: no control characters, no way out of a folder, no password in it.
- `parse_ref(ref.canonical).canonical == ref.canonical`: the canonical form is what registry, catalog and hive compare.
- A URL's query may be a key to the file (a presigned one), so it stays in the source, and out of the canonical form:
  that has a digest of it, without the parts that sign, which are others each time.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

from rbee.base.errors import NodeError, UsageError
from rbee.models.hub_address import as_ref, file_of_page
from rbee_remote.protocol import ErrorCode, Source
from rbee_remote.protocol.abilities import abilities_of
from rbee_remote.protocol.splits import first_part

#: What runs where neither a request nor the inventory names a model.
DEFAULT_MODEL = "smollm2:135m"
MAX_LENGTH = 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(:[a-z0-9][a-z0-9._-]*)?")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/ -]*(?<! )")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
_OLLAMA = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}(/[a-z0-9][a-z0-9._-]{0,79}){0,2}")
_OLLAMA_TAG = re.compile(r"[a-z0-9_][a-z0-9._-]{0,79}")
_DIGEST_LENGTH = 12
_DIGEST = re.compile(f"[0-9a-f]{{{_DIGEST_LENGTH}}}")
#: Parts of a query that say who may have the file, and not which it is: of S3, Google's, Azure's and CloudFront's.
_SIGNS = re.compile(
    r"x-(amz|goog|oss|cos)-.*|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|signature|policy|expires|token"
    r"|access_token|sig|s[epvrt]|spr|sip|sk(oid|tid|[tesv])|download",
    re.IGNORECASE,
)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_FORMS = "smollm2:135m, hf:OWNER/REPO[:QUANT or FILE][@REVISION], file:/PATH on the node, https://…"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """canonical: the ref as it is stored and compared. sources: in the order in which they are tried.

    sha256: lower-case hex, empty when nobody said it. size: bytes, None when nobody said it.
    """

    canonical: str
    sources: tuple[Source, ...]
    sha256: str = ""
    size: int | None = None

    @property
    def path_on_node(self) -> str | None:
        """Of a `file:` ref, else None."""
        return self.sources[0].path if self.sources[0].kind == "file" else None


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model with a short name. size: bytes, None where models.toml leaves it to the source; likewise sha256 "".

    kind: what it is asked for first, chat, embedding or rerank. default: it is meant by its name up to the colon.
    """

    name: str
    title: str
    license: str
    sources: tuple[Source, ...]
    sha256: str = ""
    size: int | None = None
    kind: str = "chat"
    default: bool = False

    @property
    def able(self) -> tuple[str, ...]:
        """What it can be asked for, as `abilities` has it."""
        return abilities_of(self.kind)


def parse_ref(text: str) -> ModelRef:
    """Raises UsageError for what cannot be a ref, NodeError MODEL_NOT_FOUND for a name that is not built in."""
    if not text or len(text) > MAX_LENGTH or not text.isprintable():
        raise _malformed(text, "a model ref is one line of printable characters")
    text = as_ref(text)
    scheme, colon, rest = text.partition(":")
    match scheme.lower() if colon else "":
        case "hf":
            return _parse_hf(text, rest)
        case "file":
            return _parse_file(text, rest)
        case "https" | "http":
            return _parse_url(text)
        case "ollama":
            return _parse_ollama(text, rest)
    return _parse_name(text)


@functools.cache
def built_in() -> dict[str, BuiltIn]:
    """The models of `models.toml`, by name."""
    tables = tomllib.loads(files("rbee.models").joinpath("models.toml").read_text(encoding="utf-8"))
    return {name: _built_in(name, table) for name, table in tables.items()}


def _parse_name(text: str) -> ModelRef:
    name = text.lower()
    if not _NAME.fullmatch(name):
        raise _malformed(text, "that is neither a built-in name nor one of the other forms")
    model = built_in().get(name) or _defaults().get(name.removesuffix(":latest"))
    if model:
        return ModelRef(model.name, model.sources, model.sha256, model.size)
    nearest = _nearest(name)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise NodeError(
        ErrorCode.MODEL_NOT_FOUND,
        f"there is no built-in model {name}",
        hint=f"{hint}`rbee models list --available` shows all names; others: hf:OWNER/REPO, file:/PATH, https://…",
    )


@functools.cache
def _defaults() -> dict[str, BuiltIn]:
    """By the name up to the colon."""
    return {name.partition(":")[0]: model for name, model in built_in().items() if model.default}


def _nearest(name: str) -> list[str]:
    """Those of the same family, or else the one whose name is most like it."""
    family = name.partition(":")[0]
    same = [known for known in built_in() if known.partition(":")[0] == family]
    return same or difflib.get_close_matches(name, built_in(), n=1, cutoff=0.4)


def _parse_hf(text: str, rest: str) -> ModelRef:
    body, at, revision = rest.partition("@")
    repo, colon, file = body.partition(":")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise _malformed(text, "after hf: comes OWNER/REPO")
    if colon and not _is_safe(file, _FILE):
        raise _malformed(text, "after the repository comes a quantisation such as Q4_K_M, or the path of a file in it")
    if at and not _is_safe(revision, _REVISION):
        raise _malformed(text, "after @ comes a branch, a tag or a commit")
    source = Source(kind="hf", repo=repo, file=first_part(file), revision=revision)
    return ModelRef(source.describe(), (source,))


def _is_safe(path: str, pattern: re.Pattern[str]) -> bool:
    """Whether a relative path matches and stays inside its root."""
    return bool(pattern.fullmatch(path)) and not any(part in {"", ".", ".."} for part in path.split("/"))


def _parse_ollama(text: str, rest: str) -> ModelRef:
    """NAME or NAME:TAG, with a namespace where it has one. Ollama's names know no case."""
    name = rest.lower()
    body, colon, tag = name.rpartition(":") if ":" in name else (name, ":", "latest")
    if not _OLLAMA.fullmatch(body) or not _OLLAMA_TAG.fullmatch(tag):
        raise _malformed(text, "after ollama: comes a name of Ollama's, such as llama3.2:3b")
    found = f"{body}{colon}{tag}"
    return ModelRef(f"ollama:{found}", (Source(kind="ollama", requirement=found),))


def _parse_file(text: str, path: str) -> ModelRef:
    if not path.startswith("/") or path.endswith("/"):
        raise _malformed(text, "after file: comes the absolute path of a file on the node")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _malformed(text, "a path with .. in it is not taken")
    if not parts:
        raise _malformed(text, "after file: comes the absolute path of a file on the node")
    path = first_part("/" + "/".join(parts))
    return ModelRef(f"file:{path}", (Source(kind="file", path=path),))


def _parse_url(text: str) -> ModelRef:
    try:
        url = urlsplit(file_of_page(text))
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise _malformed(text, f"that is not a URL ({error})") from error
    if url.scheme == "http" and host not in _LOOPBACK:
        raise _malformed(text, "only https:// is fetched")
    if not host or not url.path.strip("/") or " " in text:
        raise _malformed(text, "a URL needs a host and a path")
    if url.username is not None or url.password is not None:
        raise _malformed("https://…", "a URL with a password in it would end up in logs; it is not taken")
    address = url._replace(scheme=url.scheme.lower(), path=first_part(url.path), fragment="")
    name = _query_digest(url.query) if url.query else url.fragment
    fragment = name if _DIGEST.fullmatch(name) else ""
    canonical = address._replace(query="", fragment=fragment).geturl()
    return ModelRef(canonical, (Source(kind="https", url=address.geturl()),))


def _query_digest(query: str) -> str:
    """Tells files apart that only the query does; "" where nothing but a signature is in it."""
    parts = [part for part in query.split("&") if not _SIGNS.fullmatch(part.partition("=")[0])]
    return hashlib.sha256("&".join(parts).encode()).hexdigest()[:_DIGEST_LENGTH] if parts else ""


def _built_in(name: str, table: dict[str, object]) -> BuiltIn:
    sources = table.pop("sources")
    assert isinstance(sources, list)
    return BuiltIn(name=name, sources=tuple(Source(**source) for source in sources), **table)  # type: ignore[arg-type]


def _malformed(text: str, why: str) -> UsageError:
    shown = text.partition("?")[0] if "://" in text else text
    shown = shown if shown.isprintable() else ascii(shown)
    return UsageError(f"{shown[:100]!r} is not a model ref: {why}", hint=f"forms: {_FORMS}")
