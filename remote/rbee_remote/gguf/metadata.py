"""`inspect FILE`: what a GGUF model says of itself, as ModelMeta JSON. Of a split model FILE is the first part.

A process of its own: a damaged file must not harm the hive. Of the gguf library its tables are used, which need none of
what the rest of it brings.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

from rbee_remote.gguf.file import GgufFile, read_gguf
from rbee_remote.gguf.memory import cache_shape
from rbee_remote.gguf.parts import joined
from rbee_remote.gguf.use import is_adapter, read_use
from rbee_remote.protocol import ErrorCode, ModelMeta, RemoteError, encode
from rbee_remote.sandbox import confine_reader
from rbee_remote.system.alone import import_alone
from rbee_remote.system.command import accept_tags
from rbee_remote.system.model_files import files_of
from rbee_remote.system.reader import end_with_reader

#: Types whose matrices llama.cpp copies into another order for some processors (ggml-cpu/repack.cpp).
_REARRANGED = {"Q4_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4"}
#: … and for those of this machine's kind alone.
_REARRANGED_HERE = {"Q8_0"} if platform.machine() in ("aarch64", "arm64", "riscv64") else set()

#: No model has figures beyond this; with them the arithmetic of a fit would mean nothing.
_MOST = 2**31
_MOST_PARAMETERS = 2**53


def main(argv: list[str]) -> int:
    """Print the ModelMeta of a file. Raises RemoteError MODEL_INVALID, MODEL_NOT_FOUND."""
    parser = argparse.ArgumentParser(prog="rbee_remote inspect")
    parser.add_argument("file", type=Path)
    accept_tags(parser)
    file = parser.parse_args(argv).file
    confine_reader(str(file.absolute()))
    end_with_reader()
    meta = read_meta(file)
    sys.stdout.write(json.dumps(encode(meta)) + "\n")
    return 0


def read_meta(path: Path) -> ModelMeta:
    """Raises RemoteError MODEL_NOT_FOUND when there is no such file, MODEL_INVALID when it is no whole GGUF model."""
    for part in files_of(path):
        if not part.is_file():
            raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"there is no file {part}")
    import_alone("gguf.constants")  # before the others name it
    try:
        files = [_read_whole(part) for part in files_of(path)]
        return meta_of(joined(files))
    except OSError as error:
        raise RemoteError(ErrorCode.MODEL_INVALID, f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RemoteError(
            ErrorCode.MODEL_INVALID,
            f"the file is not a complete GGUF model: {error}",
            hint="download it again, or check that it is a GGUF file",
        ) from error


def _read_whole(path: Path) -> GgufFile:
    """Raises ValueError, which names a part of a split model."""
    try:
        file = read_gguf(path)
        _check_whole(file)
    except ValueError as error:
        if len(files_of(path)) == 1:
            raise
        raise ValueError(f"{path.name}: {error}") from error
    return file


def _check_whole(file: GgufFile) -> None:
    """Raises ValueError unless every tensor is inside the file."""
    from gguf.constants import GGML_QUANT_SIZES

    blocks = {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    for tensor in file.tensors:
        # Of a type that is younger than the gguf library here the size is not known.
        elements, size = blocks.get(tensor.kind, (1, 0))
        missing = tensor.offset + tensor.elements // elements * size - file.size
        if missing > 0:
            raise ValueError(f"it ends {missing} bytes before the end of {tensor.name}")


def _tied_bytes(file: GgufFile) -> int:
    """Of the token embedding, where it is the output's matrix too, in a type that llama.cpp may rearrange."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    by_name = {tensor.name: tensor for tensor in file.tensors}
    embedding = by_name.get("token_embd.weight")
    kinds = {GGMLQuantizationType[name] for name in _REARRANGED | _REARRANGED_HERE}
    if embedding is None or embedding.kind not in kinds or "output.weight" in by_name:
        return 0
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(embedding.kind)]
    return embedding.elements // int(elements) * int(size)


#: How the names of those tensors begin that make a score of a text: llama.cpp, LLM_TENSOR_CLS and LLM_TENSOR_CLS_OUT.
_HEAD = "cls."


def meta_of(file: GgufFile) -> ModelMeta:
    """Raises ValueError."""
    architecture = file.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("the key general.architecture is missing")  # noqa: TRY004 - reported as a bad file

    def number(key: str, default: int | None = None, *, least: int = 1) -> int:
        found = file.values.get(f"{architecture}.{key}", default)
        if found is None:
            raise ValueError(f"the key {architecture}.{key} is missing")
        mean = _mean(found)
        if not least <= mean <= _MOST:
            raise ValueError(f"{architecture}.{key} cannot be {mean}")
        return mean

    parameters = sum(tensor.elements for tensor in file.tensors)
    if parameters > _MOST_PARAMETERS:
        raise ValueError(f"its tensors have {parameters} values")
    if is_adapter(file.values):
        return _adapter_meta(architecture, parameters, file)
    n_embd, n_head = number("embedding_length"), number("attention.head_count", 1, least=0)
    head_dim = n_embd // max(n_head, 1)
    cache = cache_shape(architecture, file.values, number)
    use = read_use(architecture, file.values)
    return ModelMeta(
        architecture=architecture,
        n_layers=number("block_count"),
        n_ctx_train=number("context_length"),
        n_embd=n_embd,
        n_vocab=number("vocab_size", file.lengths.get("tokenizer.ggml.tokens", 0), least=0),
        n_head_kv=number("attention.head_count_kv", n_head, least=0),
        head_dim_k=number("attention.key_length", head_dim, least=0),
        head_dim_v=number("attention.value_length", head_dim, least=0),
        quantization=_quantization(file.values.get("general.file_type")),
        parameters=parameters,
        n_head=n_head,
        kv_per_token=cache.kv_per_token,
        kv_per_token_swa=cache.kv_per_token_swa,
        n_swa=cache.n_swa,
        state_per_slot=cache.state_per_slot,
        tied_bytes=_tied_bytes(file),
        pooling=use.pooling,
        whole=use.whole,
        ranks=any(tensor.name.startswith(_HEAD) for tensor in file.tensors),
    )


def _adapter_meta(architecture: str, parameters: int, file: GgufFile) -> ModelMeta:
    """What is said of a model alone is 0."""
    return ModelMeta(
        architecture=architecture,
        n_layers=0,
        n_ctx_train=0,
        n_embd=0,
        n_vocab=0,
        n_head_kv=0,
        head_dim_k=0,
        head_dim_v=0,
        quantization=_quantization(file.values.get("general.file_type")),
        parameters=parameters,
        adapter=True,
    )


def _mean(found: Any) -> int:
    """Some models give one number per layer: their mean, rounded up, makes the same total over all layers."""
    numbers = found if isinstance(found, list) else [found]
    if not numbers or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ValueError(f"{str(found)[:40]!r} stands where a number has to")
    mean = sum(numbers) / len(numbers)
    if not math.isfinite(mean):  # of numbers that are
        raise ValueError("a number in it is beyond what numbers can be")
    return math.ceil(mean)


def _quantization(file_type: Any) -> str:
    """The name of `general.file_type`, as in file names: 15 is Q4_K_M. Empty when the file does not say."""
    from gguf.constants import LlamaFileType

    if not isinstance(file_type, int):
        return ""
    try:
        name: str = LlamaFileType(file_type).name
    except ValueError:
        return f"file type {file_type}"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
