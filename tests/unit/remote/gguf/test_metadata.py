"""The head of a GGUF file is read as the gguf library reads it, and nothing in it can do harm."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader

from rbee_remote.gguf.file import read_gguf
from rbee_remote.gguf.metadata import read_meta
from rbee_remote.protocol import ErrorCode, RemoteError
from tests import tiny_adapters
from tests.unit.remote.hive.conftest import make_gguf

UINT8, UINT32, INT32, STRING, ARRAY = 0, 4, 5, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def uint32(key: str, value: int) -> bytes:
    return entry(key, UINT32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, content: bytes = b"") -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", kind, count) + content)


BASE = {
    "general.architecture": entry("general.architecture", STRING, text("llama")),
    "llama.block_count": uint32("llama.block_count", 2),
    "llama.context_length": uint32("llama.context_length", 128),
    "llama.embedding_length": uint32("llama.embedding_length", 64),
    "llama.attention.head_count": uint32("llama.attention.head_count", 4),
}
TENSOR = text("t") + struct.pack("<IQIQ", 1, 4, 0, 0)


def gguf(path: Path, *more: bytes, tensor: bytes = TENSOR, keys: int | None = None, **changed: bytes) -> Path:
    """A file with one tensor of 4 floats. more: further entries. changed: by the last word of the key."""
    entries = [changed.get(key.rpartition(".")[2], value) for key, value in BASE.items()] + list(more)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries) if keys is None else keys) + b"".join(entries) + tensor
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(16))
    return path


def invalid(path: Path) -> str:
    with pytest.raises(RemoteError) as failure:
        read_meta(path)
    assert failure.value.code is ErrorCode.MODEL_INVALID
    return failure.value.message


@pytest.mark.model
def test_keys_and_tensors_are_those_that_the_library_reads(model_path: Path) -> None:
    ours, theirs = read_gguf(model_path), GGUFReader(model_path)
    assert [(t.name, t.shape, t.kind, t.offset) for t in ours.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), t.tensor_type.value, t.data_offset) for t in theirs.tensors
    ]
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert set(ours.values) == set(fields)
    kept = {key: value for key, value in ours.values.items() if value is not None}
    assert kept == {key: fields[key].contents() for key in kept}
    assert ours.lengths["tokenizer.ggml.tokens"] == 49152


@pytest.mark.parametrize(
    ("name", "kind", "tied"), [("token_embd.weight", 2, 18), ("token_embd.weight", 0, 0), ("blk.0.attn_q.weight", 2, 0)]
)
def test_an_embedding_that_is_the_output_too_may_be_kept_twice(tmp_path: Path, name: str, kind: int, tied: int) -> None:
    """Kind 2 is Q4_0, 18 bytes for 32 values; 0 is F32, which llama.cpp leaves in order."""
    tensor = text(name) + struct.pack("<IQIQ", 1, 32 if kind else 4, kind, 0)
    path = gguf(tmp_path / "m.gguf", tensor=tensor)
    path.write_bytes(path.read_bytes() + bytes(16))
    assert read_meta(path).tied_bytes == tied


def test_a_small_whole_file_is_taken(tmp_path: Path) -> None:
    meta = read_meta(
        gguf(tmp_path / "m.gguf", array("llama.attention.head_count_kv", UINT32, 2, struct.pack("<II", 1, 2)))
    )
    assert (meta.n_layers, meta.n_head_kv, meta.head_dim_k, meta.parameters) == (2, 2, 16, 4)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([array("x", STRING, 2**62)], "ends within"),
        ([array("x", STRING, 2**40, bytes(1_000_000))], "ends within"),
        ([array("x", UINT8, 2**62, bytes(1_000_000))], "ends within"),
        ([array("x", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 5000)], "unknown kind 9"),
        ([entry("x", STRING, struct.pack("<Q", 2**63))], "ends within"),
        ([entry("x", 99, b"")], "unknown kind 99"),
        ([array("llama.attention.head_count_kv", UINT32, 0)], "where a number has to"),
        ([uint32("general.alignment", 3)], "alignment"),
        ([entry("split.count", 2, struct.pack("<H", 3))], "one of 3 parts"),
    ],
)
def test_a_hostile_entry_makes_a_model_invalid(tmp_path: Path, entries: list[bytes], why: str) -> None:
    assert why in invalid(gguf(tmp_path / "m.gguf", *entries))


def test_counts_and_figures_that_no_model_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert "claims" in invalid(gguf(path, keys=2**63))
    negative = entry("llama.block_count", INT32, struct.pack("<i", -2))
    assert "cannot be -2" in invalid(gguf(path, block_count=negative))
    assert "where a number has to" in invalid(gguf(path, block_count=entry("llama.block_count", STRING, text("2"))))
    assert "before the end of t" in invalid(gguf(path, tensor=text("t") + struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0)))


def test_whatever_is_cut_or_damaged_is_invalid_or_read_and_never_worse(tmp_path: Path) -> None:
    whole = make_gguf(tmp_path / "whole.gguf").read_bytes()
    path, chance = tmp_path / "damaged.gguf", random.Random(3)
    for length in range(0, len(whole), 997):
        path.write_bytes(whole[:length])
        invalid(path)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[chance.randrange(600)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_meta(path)
        except RemoteError as error:
            assert error.code is ErrorCode.MODEL_INVALID


def doubles(key: str, *values: float) -> bytes:
    return array(key, 12, len(values), struct.pack(f"<{len(values)}d", *values))


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (doubles("llama.embedding_length", 1e308, 1e308), "beyond what numbers can be"),
        (doubles("llama.embedding_length", float("inf")), "stands where a number has to"),
    ],
)
def test_numbers_whose_mean_is_none_are_refused(tmp_path: Path, length: bytes, words: str) -> None:
    assert words in invalid(gguf(tmp_path / "m.gguf", embedding_length=length))


def test_a_model_of_more_values_than_there_can_be_is_refused(tmp_path: Path) -> None:
    huge = text("t") + struct.pack("<I4QIQ", 4, 2**63, 2**63, 2**63, 2**63, 99, 0)  # of a type that nobody knows
    assert "values" in invalid(gguf(tmp_path / "m.gguf", tensor=huge))


def test_what_is_kept_of_a_file_is_bounded_as_a_whole(tmp_path: Path) -> None:
    """Each list is as long as one may be: as Python's numbers all of them would take eight times the file."""
    many = [array(f"k{number}", UINT8, 4096, bytes([200]) * 4096) for number in range(2000)]
    file = read_gguf(gguf(tmp_path / "m.gguf", *many))
    kept = [value for value in file.values.values() if isinstance(value, list)]
    assert 900 < len(kept) <= 1024
    assert file.lengths["k1999"] == 4096


@pytest.mark.parametrize("name", ["x" * 1025, "x" * 2**16])
def test_no_name_is_longer_than_names_are(tmp_path: Path, name: str) -> None:
    tensor = text(name) + struct.pack("<IQIQ", 1, 4, 0, 0)
    assert "a name in it" in invalid(gguf(tmp_path / "m.gguf", tensor=tensor))


def test_an_adapter_is_known_as_one(tmp_path: Path) -> None:
    meta = read_meta(tiny_adapters.write(tmp_path / "a.gguf", 1, architecture="qwen2"))
    assert (meta.architecture, meta.able, meta.n_layers) == ("qwen2", ("adapter",), 0)
    assert meta.parameters == 6 * 3 * 2 * 32 * 4


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tiny_adapters.write(tmp_path / "a.gguf", 1)
    path.write_bytes(path.read_bytes().replace(text("lora"), text("ia3x")))
    with pytest.raises(RemoteError, match="an adapter of the type 'ia3x'"):
        read_meta(path)
