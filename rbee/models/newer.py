"""`rbee models pull` of a model that is there already: whether the hub has a newer one, and taken if that is wanted.

Rules
- A ref moves where it names no commit: a branch, or nothing, which is the branch `main`.
- What counts is the content. A commit that leaves the model as it is makes no newer one.
- Not to reach the hub is no error: the copy is there, and whole.
"""

from __future__ import annotations

import re
from dataclasses import replace

from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Notice, Progress
from rbee.models.downloads import KEY
from rbee.models.provision import ensure_model, in_catalog, newest_model, refresh_model
from rbee.models.ref import ModelRef
from rbee.node.session import NodeSession
from rbee_remote.protocol import ErrorCode, ModelInfo, NewestModel

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 12


async def pull_model(session: NodeSession, ref: ModelRef, *, refresh: bool) -> ModelInfo:
    """The model on a node that is attached. refresh: the newest there is, where the ref moves; else a notice says that
    there is a newer one.

    Raises as `ensure_model` does; UsageError where there is nothing that could be newer.
    """
    found = await in_catalog(session.attached.hive, ref)
    if refresh and not can_move(ref):
        raise UsageError(
            f"{ref.canonical} always stands for the same file",
            hint="--refresh is for hf: refs without a commit, and for https:// addresses",
        )
    if found is None or not can_move(ref):
        return await ensure_model(session, ref)
    if ref.sources[0].kind == "https":  # there is nothing to compare before it has come
        return await refresh_model(session, ref) if refresh else found
    newest = await _newest(session, ref, found, required=refresh)
    newer = is_newer(found, newest) if newest else None
    if refresh and newer is not False:
        return await refresh_model(session, ref)
    if newest is None or not newer:
        return found
    session.emit(
        Notice(
            f"the hub has a newer {ref.canonical}: commit {_shown(newest.source)}, and {session.node.name} has "
            f"{_shown(found.source)}; take it by rbee models pull {session.node.name} {ref.canonical} --refresh"
        )
    )
    return found


async def _newest(session: NodeSession, ref: ModelRef, found: ModelInfo, *, required: bool) -> NewestModel | None:
    """None where nobody can say, unless it is required: then where the hub has that file no more."""
    session.emit(Progress(KEY, f"asking the hub for a newer {ref.canonical}", 0.0, None, "steps"))
    try:
        return await newest_model(session, of_copy(ref, found))
    except NodeError as error:
        if required and error.code is not ErrorCode.MODEL_NOT_FOUND:
            raise
        if error.code is ErrorCode.MODEL_NOT_FOUND and not required:
            session.emit(Notice(f"{error.message}; the copy on {session.node.name} stays as it is"))
        return None


def can_move(ref: ModelRef) -> bool:
    """Whether the ref may stand for another file later."""
    source = ref.sources[0]
    if ref.sha256 or source.kind not in {"hf", "https"}:
        return False
    return not _COMMIT.fullmatch(source.revision)


def of_copy(ref: ModelRef, found: ModelInfo) -> ModelRef:
    """The ref, with the very file that the copy was made of: which one a quantisation means may depend on the node."""
    source, begin = ref.sources[0], f"hf:{ref.sources[0].repo}:"
    if not found.source.startswith(begin):
        return replace(ref, sources=(source,))
    commit = _commit(found.source)
    file = found.source.removeprefix(begin).removesuffix(f"@{commit}")
    return replace(ref, sources=(replace(source, file=file),))


def is_newer(found: ModelInfo, newest: NewestModel) -> bool | None:
    """Whether the hub has another content than the copy; by commit where it does not say. None where nobody knows of
    which commit the copy is, as of one that another program fetched, before it has been read."""
    if found.sha256 and newest.sha256:
        return found.sha256 != newest.sha256
    copy = _commit(found.source)
    return copy != _commit(newest.source) if copy else None


def _commit(source: str) -> str:
    """ "" where the source names none."""
    commit = source.rpartition("@")[2]
    return commit if _COMMIT.fullmatch(commit) else ""


def _shown(source: str) -> str:
    return _commit(source)[:_SHOWN] or "another one"
