"""How a model is to be loaded, as the command line says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import UsageError
from rbee.cli.load_options import load_options
from rbee_remote.protocol import LoadOptions


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, LoadOptions()),
        ({"ctx": None, "devices": []}, LoadOptions()),
        ({"ctx": "auto", "slots": "2"}, LoadOptions(ctx=0, slots=2)),
        ({"ctx": "4096", "kv_type": "q4_0"}, LoadOptions(ctx=4096, kv_type="q4_0")),
        ({"devices": ["CUDA0", "1"]}, LoadOptions(devices=("CUDA0", "1"))),
        ({"tensor_split": "3, 1.5"}, LoadOptions(tensor_split=(3.0, 1.5))),
        ({"gpu_layers": "auto"}, LoadOptions(gpu_layers=-1)),
        ({"gpu_layers": "all"}, LoadOptions(gpu_layers=4096)),
        ({"pooling": "cls"}, LoadOptions(pooling="cls")),
        ({"gpu_layers": "12", "flash_attention": "on"}, LoadOptions(gpu_layers=12, flash_attention="on")),
        ({"lora": ["/a.gguf", "/b:1.gguf:0.5"]}, LoadOptions(lora=("/a.gguf:1", "/b:1.gguf:0.5"))),
        ({"lora": ["hf:o/r:a.gguf:-2", "file:/a.gguf"]}, LoadOptions(lora=("hf:o/r:a.gguf:-2", "file:/a.gguf:1"))),
        ({"lora": ["a.gguf:2"]}, LoadOptions(lora=(f"{Path.cwd()}/a.gguf:2",))),
        ({"lora": ["~/a.gguf"]}, LoadOptions(lora=(f"{Path.home()}/a.gguf:1",))),
    ],
)
def test_words_of_the_command_line_become_fields(given: dict[str, Any], expected: LoadOptions) -> None:
    assert load_options(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ctx": "much"}, "--ctx: 'much' is neither a whole number nor 'auto'"),
        ({"slots": ""}, "--slots: expected a whole number, got text"),
        ({"devices": ["a b"]}, "--device: 'a b' is not a device's name"),
        ({"gpu_layers": "5000"}, "--gpu-layers: 5000 is not between 0 and 4096"),
        ({"lora": ["/a.gguf", "/a.gguf:1"]}, "--lora: an entry is listed twice"),
        ({"lora": [" "]}, "--lora: ' ' names no adapter"),
    ],
)
def test_what_is_wrong_names_the_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_options(given)
