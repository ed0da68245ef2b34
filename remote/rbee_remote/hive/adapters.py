"""Which files of the catalog a model's adapters are, and whether they go with it."""

from __future__ import annotations

from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.protocol import ErrorCode, ModelInfo, RemoteError, WorkerOptions
from rbee_remote.protocol.abilities import ADAPTER_HINT, CHAT, refusal
from rbee_remote.protocol.load import AdapterFile


def find_adapters(catalog: Catalog, model: ModelInfo, asked: WorkerOptions) -> list[tuple[ModelInfo, AdapterFile]]:
    """In the order of their ids. Raises RemoteError: MODEL_NOT_FOUND; USAGE where the model is an adapter itself, or an
    adapter is none, or one for models of another architecture."""
    if model.meta.adapter:
        raise RemoteError(ErrorCode.USAGE, refusal(model.model, model.meta.able, CHAT), hint=ADAPTER_HINT)
    try:
        wanted = asked.adapters
    except ValueError as error:
        raise RemoteError(ErrorCode.USAGE, str(error)) from error
    found = [(catalog.find(adapter.name), adapter) for adapter in wanted]
    for info, _ in found:
        _check(info, model)
    return [(info, AdapterFile(info.model, info.path, adapter.scale)) for info, adapter in found]


def _check(info: ModelInfo, model: ModelInfo) -> None:
    if not info.meta.adapter:
        raise RemoteError(
            ErrorCode.USAGE,
            f"{info.model} is a model and no LoRA adapter",
            hint="an adapter's GGUF file says general.type adapter: llama.cpp's convert_lora_to_gguf.py makes such",
        )
    if info.meta.architecture != model.meta.architecture:
        raise RemoteError(
            ErrorCode.USAGE,
            f"the adapter {info.model} is for {info.meta.architecture} models, and {model.model} is of"
            f" {model.meta.architecture}",
            hint="take an adapter that was made for this model",
        )
