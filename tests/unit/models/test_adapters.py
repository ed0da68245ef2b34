"""Adapters are on the node before a model is loaded with them, sent once, and known by what the node calls them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import UsageError
from rbee.models.adapters import with_adapters
from rbee_remote.protocol import LoadOptions
from tests.unit.models.test_provision import CONTENT, META, Bed, bed, info

__all__ = ["bed"]

ADAPTER = replace(META, adapter=True)


async def test_a_file_of_this_machine_is_sent_once(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "style.gguf"
    path.write_bytes(CONTENT)
    load = LoadOptions(ctx=512, lora=(f"{path}:0.5",))
    await _as_adapters(bed, load)
    there = f"file:{bed.blob}"
    assert await with_adapters(bed.session(), load) == LoadOptions(ctx=512, lora=(f"{there}:0.5",))
    assert bed.blob.read_bytes() == CONTENT
    assert len(bed.hive.registered) == 1


async def _as_adapters(bed: Bed, load: LoadOptions) -> None:
    """The double's hive takes all for models: have it take what it registers for adapters from then on."""
    with pytest.raises(UsageError, match="is a model and no LoRA adapter"):
        await with_adapters(bed.session(), load)
    bed.hive.catalog[:] = [replace(each, meta=ADAPTER) for each in bed.hive.catalog]


async def test_refs_are_brought_as_models_are(bed: Bed) -> None:
    known = replace(info("hf:o/r:a.gguf"), meta=ADAPTER)
    bed.hive.catalog.append(known)
    load = LoadOptions(lora=("HF:o/r:a.gguf:2",))
    assert (await with_adapters(bed.session(), load)).lora == ("hf:o/r:a.gguf:2",)
    on_node = LoadOptions(lora=("file:/models/a.gguf:1",))
    await _as_adapters(bed, on_node)
    assert await with_adapters(bed.session(), on_node) == on_node
    assert [each.path for each in bed.hive.registered] == ["/models/a.gguf"]


async def test_nothing_is_asked_for_a_model_without_adapters(bed: Bed) -> None:
    load = LoadOptions(ctx=512)
    assert await with_adapters(bed.session(), load) is load


async def test_nothing_but_a_gguf_file_leaves_this_machine(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("something private")
    with pytest.raises(UsageError, match="is no GGUF file"):
        await with_adapters(bed.session(), LoadOptions(lora=(f"{path}:1",)))
    with pytest.raises(UsageError, match="cannot read the adapter"):
        await with_adapters(bed.session(), LoadOptions(lora=(f"{path}.gguf:1",)))
    assert not bed.blob.parent.exists()
