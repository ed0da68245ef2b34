"""LoRA adapters in llama.cpp: loaded with a model, and applied to a context by scales that each step can have anew."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.protocol.load import AdapterFile
from rbee_remote.worker.llama.log import collected_errors


class Adapters:
    """They go with their model. Made before a context is: llama.cpp lays its graph out for those that there are."""

    def __init__(self, model: llama.llama_model_p, files: Sequence[AdapterFile]) -> None:
        """Raises RemoteError MODEL_INVALID."""
        self._loaded = [_load(model, file) for file in files]
        self._applied: tuple[float, ...] = (0.0,) * len(files)  # none of them, in a new context
        #: Where nobody says otherwise.
        self.scales = tuple(file.scale for file in files)

    def apply(self, context: llama.llama_context_p, scales: Sequence[float]) -> None:
        """From the next step on. scales: one for each adapter; 0 leaves it out."""
        scales = tuple(scales)
        if scales == self._applied:
            return
        used = [(adapter, scale) for adapter, scale in zip(self._loaded, scales, strict=True) if scale]
        handles = (llama.llama_adapter_lora_p_ctypes * len(used))(*(adapter for adapter, _ in used))
        factors = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        if llama.llama_set_adapters_lora(context, handles, len(used), factors):
            raise RuntimeError("llama.cpp does not take the adapters that it loaded")
        self._applied = scales


def _load(model: llama.llama_model_p, file: AdapterFile) -> object:
    with collected_errors() as errors:
        adapter = llama.llama_adapter_lora_init(model, file.path.encode())
    details = {"adapter": file.name} | ({"llama.cpp": "; ".join(errors)} if errors else {})
    if not adapter:
        what = f"llama.cpp cannot load the adapter {file.name} with this model"
        hint = "it has to be a LoRA adapter in a GGUF file that was made for this very model"
        raise RemoteError(ErrorCode.MODEL_INVALID, what, hint=hint, details=details)
    if llama.llama_adapter_get_alora_n_invocation_tokens(adapter):
        what = f"the adapter {file.name} is an activated one (aLoRA), which is not supported"
        hint = "take a plain LoRA adapter: this one would only be right from certain tokens of a prompt on"
        raise RemoteError(ErrorCode.MODEL_INVALID, what, hint=hint, details=details)
    return adapter
