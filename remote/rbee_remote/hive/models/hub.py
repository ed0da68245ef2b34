"""What stands behind `hf:OWNER/REPO[:QUANT or FILE][@REVISION]`: one file at one commit, or all parts of a split model,
asked of the hub's API.

The real huggingface_hub client asks; the bytes are fetched by `fetch`, which can resume and report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rbee_remote.hive.models.fetch import interrupted
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import Problem, Retryable
from rbee_remote.hive.models.redirects import Guard
from rbee_remote.protocol import DENIED, ErrorCode, RemoteError, Source
from rbee_remote.protocol.retries import HUB_API_S
from rbee_remote.protocol.splits import FileGroup, digest_of_parts, first_part, grouped, parts_of

#: Where a token goes when the keeper has no HF_ENDPOINT: what this machine's variables say is not the keeper's word.
PUBLIC_HUB = "https://huggingface.co"

#: Bytes of an answer, which is read at once and takes up to 25 times as much once it is parsed. A file of a repository
#: is some 350 of them: this is 45,000 files, and repositories with GGUF files have tens to hundreds.
_MOST_OF_ANSWER = 16 * 2**20

#: What to take of a repository when nobody said: the usual balance of size and quality first.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q4_1", "Q8_0", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class HubFile:
    """sha256 is empty for a file that does not lie in large-file storage; size is None where the hub does not say."""

    url: str
    size: int | None
    sha256: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """source: the model at a commit, by its file or its first part. files: that one, or all parts in their order."""

    source: Source
    files: tuple[HubFile, ...]

    @property
    def sha256(self) -> str:
        """As in ModelInfo; "" where the hub does not say."""
        known = [file.sha256 for file in self.files]
        return digest_of_parts(known) if all(known) else ""


def resolve(source: Source, *, token: str, endpoint: str) -> HubModel:
    """Pin `source` to a commit and a file, or to the parts of a split model.

    token: "" for none. endpoint: "" for the hub of this machine's HF_ENDPOINT; with a token, for the hub itself.
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
    info = _ask(api, source)
    sizes = {file.rfilename: file for file in info.siblings or ()}
    name = choose_file(sizes, source.file, source.repo)
    files = tuple(
        HubFile(
            url=hf_hub_url(source.repo, part, revision=info.sha, endpoint=endpoint or None),
            size=sizes[part].size,
            sha256=sizes[part].lfs.sha256 if sizes[part].lfs else "",
        )
        for part in parts_of(name)
    )
    return HubModel(Source(kind="hf", repo=source.repo, file=name, revision=info.sha), files)


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


def choose_file(names: Iterable[str], wanted: str, repo: str) -> str:
    """The file that `wanted` means: its name, a quantisation such as Q4_K_M, or nothing at all.

    Raises RemoteError MODEL_NOT_FOUND, which lists what there is.
    """
    groups = {group.name: group for group in grouped(names)}
    named = groups.get(first_part(wanted))
    if named and not named.is_whole:
        raise _incomplete(named, repo)
    if named:
        return named.name
    models = sorted(
        (name for name, group in groups.items() if _is_model(name) and group.is_whole),
        key=lambda name: (name.count("/"), len(name), name),
    )
    for quantization in (wanted,) if wanted else _PREFERRED:
        fitting = [name for name in models if _says(name, quantization)]
        if fitting:
            return fitting[0]
    if not wanted and len(models) == 1:
        return models[0]
    for name, group in groups.items():
        if wanted and not group.is_whole and _says(name, wanted):
            raise _incomplete(group, repo)
    what = f"no file {wanted}" if wanted else "no GGUF file that is an obvious choice"
    raise RemoteError(
        ErrorCode.MODEL_NOT_FOUND,
        f"{repo} has {what}",
        hint="choose one of the files",
        details={"files": ", ".join(models[:20])},
    )


def _says(name: str, quantization: str) -> bool:
    part = rf"(?<![A-Za-z0-9]){re.escape(quantization)}(?![A-Za-z0-9_])"
    return re.search(part, name, re.IGNORECASE) is not None


def _incomplete(group: FileGroup, repo: str) -> RemoteError:
    """A split model of which the repository does not have all parts."""
    return _not_found(
        f"{repo} has only {len(group.files) - len(group.missing)} of the {len(group.files)} parts of {group.name}",
        f"{group.missing[0]} is not there; choose another file, or another revision",
    )


def _is_model(name: str) -> bool:
    """GGUF files, without the projectors of multimodal ones."""
    return name.lower().endswith(".gguf") and "mmproj" not in name.lower()


def _not_found(message: str, hint: str) -> RemoteError:
    return RemoteError(ErrorCode.MODEL_NOT_FOUND, message, hint=hint)


def _refused(message: str) -> RemoteError:
    return RemoteError(
        ErrorCode.DOWNLOAD_FAILED,
        message,
        hint="set HF_TOKEN, or the file it is read from, and try again",
        details={DENIED: True},
    )
