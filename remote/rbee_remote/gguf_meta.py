"""`inspect FILE`: what a GGUF file says of itself, as ModelMeta JSON.

A process of its own, because the gguf library brings numpy along, and the hive that asks stays small.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from rbee_remote.protocol import ErrorCode, ModelMeta, RemoteError, encode

#: What the gguf library raises on a file that is cut or is no GGUF: it checks little by itself.
_READER_ERRORS = (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, OSError)


def main(argv: list[str]) -> int:
    """Print the ModelMeta of a file. Raises RemoteError MODEL_INVALID, MODEL_NOT_FOUND."""
    parser = argparse.ArgumentParser(prog="rbee_remote inspect")
    parser.add_argument("file", type=Path)
    meta = read_meta(parser.parse_args(argv).file)
    sys.stdout.write(json.dumps(encode(meta)) + "\n")
    return 0


def read_meta(path: Path) -> ModelMeta:
    """Raises RemoteError MODEL_NOT_FOUND when there is no such file, MODEL_INVALID when it is no whole GGUF model."""
    from gguf import GGUFReader

    if not path.is_file():
        raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"there is no file {path}")
    try:
        return _meta(GGUFReader(path))
    except _READER_ERRORS as error:
        raise RemoteError(
            ErrorCode.MODEL_INVALID,
            f"{path.name} is not a whole GGUF model: {error}",
            hint="download it again, or check that it is a GGUF file",
        ) from error


def _meta(reader: Any) -> ModelMeta:
    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    def number(key: str, default: int | None = None) -> int:
        found = value(f"{architecture}.{key}")
        if found is None:
            if default is None:
                raise ValueError(f"the key {architecture}.{key} is missing")
            return default
        return _mean(found)

    architecture = value("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("the key general.architecture is missing")  # noqa: TRY004 - reported as a bad file
    n_embd, n_head = number("embedding_length"), number("attention.head_count", 1)
    head_dim = n_embd // max(n_head, 1)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    return ModelMeta(
        architecture=architecture,
        n_layers=number("block_count"),
        n_ctx_train=number("context_length"),
        n_embd=n_embd,
        n_vocab=number("vocab_size", len(tokens.data) if tokens else 0),
        n_head_kv=number("attention.head_count_kv", n_head),
        head_dim_k=number("attention.key_length", head_dim),
        head_dim_v=number("attention.value_length", head_dim),
        quantization=_quantization(value("general.file_type")),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
    )


def _mean(found: Any) -> int:
    """Some models give one number per layer: their mean, rounded up, makes the same total over all layers."""
    return math.ceil(sum(found) / len(found)) if isinstance(found, list) else int(found)


def _quantization(file_type: int | None) -> str:
    """The name of `general.file_type`, as in file names: 15 is Q4_K_M. Empty when the file does not say."""
    from gguf import LlamaFileType

    if file_type is None:
        return ""
    try:
        name: str = LlamaFileType(file_type).name
    except ValueError:
        return f"file type {file_type}"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
