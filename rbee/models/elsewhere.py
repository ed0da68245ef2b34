"""A model that another program of the node has already: used where it lies, in place of a download."""

from __future__ import annotations

from rbee.base.errors import NodeError
from rbee.base.events import Notice, Progress
from rbee.models.ref import ModelRef
from rbee.node.session import NodeSession
from rbee_remote.protocol import ErrorCode, ModelInfo, RegisterRequest
from rbee_remote.protocol.elsewhere import match


async def use_elsewhere(session: NodeSession, ref: ModelRef) -> ModelInfo | None:
    """The model in the catalog, where another program has its file; None where none has, or not that very file.

    Raises NodeError MODEL_NOT_FOUND for an `ollama:` ref that Ollama has not.
    """
    hive, name = session.attached.hive, session.node.name
    found = match(await hive.elsewhere(), ref.canonical, ref.sources, ref.sha256)
    if found is None:
        if ref.sources[0].kind != "ollama":
            return None
        raise NodeError(
            ErrorCode.MODEL_NOT_FOUND,
            f"Ollama on {name} has no {ref.sources[0].requirement}, or its files are not for this user",
            hint=f"rbee models list {name} shows what was found; there: ollama pull {ref.sources[0].requirement}",
        )
    session.emit(Progress("check", f"checking {found.path}", 0.0, None, "steps"))
    request = RegisterRequest(ref.canonical, found.path, ref.sha256 or found.sha256, source=found.name)
    try:
        info = await hive.register(request, found.size)
    except NodeError as error:
        if ref.sources[0].kind == "ollama" or error.code not in (ErrorCode.DOWNLOAD_FAILED, ErrorCode.MODEL_INVALID):
            raise
        session.emit(Notice(f"{found.program} on {name} has {ref.canonical}, but not whole: {error.message}"))
        return None
    session.emit(Notice(f"using {found.path}, which {found.program} has on {name}: nothing is downloaded"))
    return info
