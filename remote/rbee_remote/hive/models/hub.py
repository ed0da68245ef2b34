"""What stands behind `hf:OWNER/REPO[:QUANT or FILE][@REVISION]`: one file at one commit, or all parts of a split model,
asked of the hub's API.

The real huggingface_hub client asks; the bytes are fetched by `fetch`, which can resume and report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rbee_remote.hive.models.fetch import interrupted
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import Problem, Retryable
from rbee_remote.hive.models.redirects import Guard
from rbee_remote.protocol import DENIED, ErrorCode, RemoteError, Source
from rbee_remote.protocol.quants import Choice, NotChosen, choose
from rbee_remote.protocol.retries import HUB_API_S
from rbee_remote.protocol.splits import digest_of_parts, parts_of

#: Where a token goes when the keeper has no HF_ENDPOINT: what this machine's variables say is not the keeper's word.
PUBLIC_HUB = "https://huggingface.co"

#: Bytes of an answer, which is read at once and takes up to 25 times as much once it is parsed. A file of a repository
#: is some 350 of them: this is 45,000 files, and repositories with GGUF files have tens to hundreds.
_MOST_OF_ANSWER = 16 * 2**20

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
#: Of a hub that keeps its files otherwise than in Git too.
_COMMIT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,79}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """sha256 is empty for a file that does not lie in large-file storage; size is None where the hub does not say."""

    url: str
    size: int | None
    sha256: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """source: the model at a commit, by its file or its first part. files: that one, or all parts in their order.
    why: as in Choice."""

    source: Source
    files: tuple[HubFile, ...]
    why: str = ""

    @property
    def sha256(self) -> str:
        """As in ModelInfo; "" where the hub does not say."""
        known = [file.sha256 for file in self.files]
        return digest_of_parts(known) if all(known) else ""


def resolve(source: Source, *, token: str, endpoint: str, room: int | None = None) -> HubModel:
    """Pin `source` to a commit and a file, or to the parts of a split model.

    token: "" for none. endpoint: "" for the hub of this machine's HF_ENDPOINT; with a token, for the hub itself.
    room: as in DownloadRequest.
    Raises RemoteError MODEL_NOT_FOUND or DOWNLOAD_FAILED where a further try would not help, else Retryable; with
    details DENIED where another token, or one at all, might.
    """
    # Read when the library is imported: plain HTTP can be resumed and watched, and nobody counts us.
    os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from huggingface_hub import HfApi, close_session, get_session, hf_hub_url

    endpoint = endpoint or (PUBLIC_HUB if token else "")
    close_session()
    Guard(get_session(), most_bytes=_MOST_OF_ANSWER)
    # False: only a token that came with the request is sent, not one that happens to lie on this machine.
    api = HfApi(endpoint=endpoint or None, token=token or False, library_name="rbee")
    commit, there = _read(_ask(api, source))
    choice = choose_file({name: size for name, (size, _) in there.items()}, source.file, source.repo, room=room)
    files = tuple(
        HubFile(hf_hub_url(source.repo, part, revision=commit, endpoint=endpoint or None), *there[part])
        for part in parts_of(choice.name)
    )
    return HubModel(Source(kind="hf", repo=source.repo, file=choice.name, revision=commit), files, choice.why)


def _read(info: Any) -> tuple[str, dict[str, tuple[int | None, str]]]:
    """A repository's commit, and size and SHA-256 of each of its files: the library passes on whatever the hub said.

    Raises Retryable where those are none.
    """
    commit, there = info.sha, dict[str, tuple[int | None, str]]()
    for file in info.siblings or ():
        name, size, sha256 = file.rfilename, file.size, file.lfs.sha256 if file.lfs else ""
        is_sized = size is None or (type(size) is int and size >= 0)
        if not isinstance(name, str) or not is_sized or not (sha256 == "" or _is_like(_SHA256, sha256)):
            raise Retryable(Problem.BROKEN, f"what the hub says of a file cannot be read: {str(name)[:80]!r}")
        if name.isprintable():
            there[name] = size, sha256.lower()
    if not _is_like(_COMMIT, commit):
        raise Retryable(Problem.BROKEN, f"the hub names no commit: {str(commit)[:80]!r}")
    return commit, there


def _is_like(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _ask(api: Any, source: Source) -> Any:
    """The repository's ModelInfo with files, sizes and checksums. The hub's errors are translated here."""
    from huggingface_hub import errors

    revision = source.revision or None
    try:
        return api.model_info(source.repo, revision=revision, files_metadata=True, timeout=HUB_API_S)
    except errors.GatedRepoError as error:
        raise _refused(f"the licence of {source.repo} has to be accepted on its page first") from error
    except errors.RevisionNotFoundError as error:
        raise _not_found(f"{source.repo} has no revision {source.revision}", "check the part behind @") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name; a private one needs a hub token"
        message = f"the hub has no repository {source.repo}, or it is private"
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, message, hint=hint, details={DENIED: True}) from error
    except errors.HFValidationError as error:
        raise _not_found(f"{source.repo!r} is no name of a repository", "hf:OWNER/REPO:FILE") from error
    except errors.OfflineModeIsEnabled as error:
        raise Retryable(Problem.NO_NETWORK, "HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise _refused(f"the hub refuses {source.repo}: HTTP {status}") from error
        raise Retryable(Problem.BROKEN, f"the hub answers HTTP {status}") from error
    except httpx.TransportError as error:
        raise interrupted(error) from error
    except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
        message = f"the hub's address of {source.repo} cannot be followed: {error}"
        raise RemoteError(ErrorCode.DOWNLOAD_FAILED, message, hint="check HF_ENDPOINT where it is set") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # JSON of another shape
        raise Retryable(Problem.BROKEN, f"the hub's answer cannot be read: {error}") from error


def choose_file(sizes: Mapping[str, int | None], wanted: str, repo: str, *, room: int | None = None) -> Choice:
    """As `quants.choose`. Raises RemoteError MODEL_NOT_FOUND, which lists what there is."""
    try:
        return choose(sizes, wanted, repo, room=room)
    except NotChosen as error:
        details = {"files": ", ".join(error.candidates)} if error.candidates else {}
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, error.message, hint=error.hint, details=details) from error


def _not_found(message: str, hint: str) -> RemoteError:
    return RemoteError(ErrorCode.MODEL_NOT_FOUND, message, hint=hint)


def _refused(message: str) -> RemoteError:
    return RemoteError(
        ErrorCode.DOWNLOAD_FAILED,
        message,
        hint="set HF_TOKEN, or the file it is read from, and try again",
        details={DENIED: True},
    )
