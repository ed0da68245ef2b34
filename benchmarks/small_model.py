"""The built-in model with few of its layers: as much of a model to whatever schedules, remembers and sends, and its
prompts take a fraction of the time. What it says means nothing."""

from __future__ import annotations

import re
from pathlib import Path

import gguf


def cut(source: Path, target: Path, layers: int) -> Path:
    """`target`: the model with its first layers alone."""
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(str(target), architecture)
    writer.add_block_count(layers)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", f"{architecture}.block_count"):
            continue
        inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        number = re.match(r"blk\.(\d+)\.", tensor.name)
        if not number or int(number[1]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
