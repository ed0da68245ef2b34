"""Brings the LoRA adapters of a model onto a node, as part of phase 3.

Rules
- A file of this machine is sent once for each node, and known there by its SHA-256; a ref is brought as models are.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from rbee.base.errors import UsageError
from rbee.base.files import LocalFile
from rbee.models.provision import ensure_model, in_catalog, push_file
from rbee.models.ref import parse_ref
from rbee.node.session import NodeSession
from rbee_remote.protocol import LoadOptions, ModelInfo
from rbee_remote.protocol.abilities import ADAPTER
from rbee_remote.protocol.load_options import Adapter


async def with_adapters(session: NodeSession, load: LoadOptions) -> LoadOptions:
    """`load` with its adapters by the refs that the node's catalog has them under, brought there if need be.

    Raises as `ensure_model`; UsageError for what is not there or no adapter.
    """
    if not load.adapters:
        return load
    brought = [await _brought(session, adapter) for adapter in load.adapters]
    return load.with_adapters(brought)


async def _brought(session: NodeSession, adapter: Adapter) -> Adapter:
    if adapter.is_ref:
        found = await ensure_model(session, parse_ref(adapter.name))
    else:
        found = await _sent(session, Path(adapter.name))
    if ADAPTER not in found.meta.able:
        hint = "llama.cpp's convert_lora_to_gguf.py makes a GGUF file of an adapter"
        raise UsageError(f"{adapter.name} is a model and no LoRA adapter", hint=hint)
    return Adapter(found.model, adapter.scale)


async def _sent(session: NodeSession, path: Path) -> ModelInfo:
    await asyncio.to_thread(_check_gguf, path)
    file = await asyncio.to_thread(LocalFile.of, path)
    there = parse_ref(f"file:{session.attached.probe.home}/models/{file.sha256}.gguf")
    return await in_catalog(session.attached.hive, there) or await push_file(session, path)


def _check_gguf(path: Path) -> None:
    """An inventory, which people share, could name any file: nothing else leaves this machine. Raises UsageError."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        hint = "a file on the node is named file:/PATH, one of the hub hf:OWNER/REPO:FILE"
        raise UsageError(f"cannot read the adapter {path}: {error.strerror}", hint=hint) from error
    if magic != b"GGUF":
        raise UsageError(f"{path} is no GGUF file", hint="llama.cpp's convert_lora_to_gguf.py makes one of an adapter")
