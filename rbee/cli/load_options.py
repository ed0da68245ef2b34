"""The options that say how a model is loaded, checked as the inventory's keys of the same names are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rbee.base.errors import UsageError

CtxOption = Annotated[
    str | None,
    typer.Option("--ctx", metavar="N", help="Context in tokens, for each request; auto takes the most that fits."),
]
SlotsOption = Annotated[
    str | None,
    typer.Option("--slots", metavar="N", help="Requests served at once. [default: 4, or as many as fit]"),
]
KvTypeOption = Annotated[
    str | None,
    typer.Option("--kv-type", metavar="TYPE", help="Of the context's memory: f16, q8_0, q4_0, … [default: f16]"),
]
FlashAttentionOption = Annotated[
    str | None, typer.Option("--flash-attention", metavar="WHEN", help="auto, on or off. [default: auto]")
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="GPU", help="Use this GPU, such as CUDA0; may be repeated. [default: all]"),
]
TensorSplitOption = Annotated[
    str | None,
    typer.Option("--tensor-split", metavar="A,B,…", help="Shares of the model for the GPUs. [default: by free memory]"),
]
GpuLayersOption = Annotated[
    str | None,
    typer.Option("--gpu-layers", metavar="N", help="Layers on the GPUs: a number, auto or all. [default: auto]"),
]


def load_options(
    *,
    ctx: str | None = None,
    slots: str | None = None,
    kv_type: str | None = None,
    flash_attention: str | None = None,
    device: list[str] | None = None,
    tensor_split: str | None = None,
    gpu_layers: str | None = None,
) -> dict[str, Any]:
    """The fields of an InferRequest that are given. Raises UsageError that names the option."""
    given = {
        "ctx": None if ctx is None else _number_or_word(ctx),
        "slots": None if slots is None else _number_or_word(slots),
        "kv_type": kv_type,
        "flash_attention": flash_attention,
        "devices": device or None,
        "tensor_split": None if tensor_split is None else [_share(part) for part in tensor_split.split(",")],
        "gpu_layers": None if gpu_layers is None else _number_or_word(gpu_layers),
    }
    return {name: _checked(name, value) for name, value in given.items() if value is not None}


def _checked(name: str, value: object) -> Any:
    from rbee.inventory.schema import KEYS

    option = "--device" if name == "devices" else f"--{name.replace('_', '-')}"
    try:
        return KEYS[name][1](value)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _number_or_word(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _share(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
