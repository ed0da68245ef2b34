"""A GGUF file cut into parts, as `llama-gguf-split` cuts: the keys in the first, the tensors spread over all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGUFValueType
from gguf.gguf_reader import ReaderField

from rbee_remote.protocol.splits import numbered


def split(whole: Path, folder: Path, count: int, *, first_has_tensors: bool = True) -> list[Path]:
    """The parts of `whole` in `folder`, in order, named after it. first_has_tensors: as `--no-tensor-first-split`
    has it not."""
    reader = GGUFReader(whole)
    shares = _shares(len(reader.tensors), count, first_has_tensors=first_has_tensors)
    parts, begin = [], 0
    for number, share in enumerate(shares):
        writer = GGUFWriter(
            folder / numbered(whole.name, number + 1, count), _text(reader.fields["general.architecture"])
        )
        if number == 0:
            _copy_keys(reader, writer)
        else:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[begin : begin + share]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        begin += share
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(folder / numbered(whole.name, number + 1, count))
    return parts


def _shares(tensors: int, count: int, *, first_has_tensors: bool) -> Sequence[int]:
    holding = count if first_has_tensors else count - 1
    shares = [tensors // holding + (number < tensors % holding) for number in range(holding)]
    return shares if first_has_tensors else [0, *shares]


def _copy_keys(reader: GGUFReader, writer: GGUFWriter) -> None:
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)


def _text(field: ReaderField) -> str:
    return str(field.contents())
