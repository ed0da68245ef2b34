"""What a file says that its model is made for."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from rbee_remote.gguf.metadata import read_meta
from tests import tiny_encoders as tiny
from tests import tiny_models

POOLING = gguf.PoolingType


@pytest.mark.parametrize(
    ("pooling", "causal", "found"),
    [
        (None, True, ("", False)),
        (POOLING.LAST, True, ("last", False)),
        (POOLING.RANK, True, ("rank", False)),
        (POOLING.MEAN, False, ("mean", True)),
        (None, False, ("mean", True)),
    ],
)
def test_a_decoder(tmp_path: Path, pooling: gguf.PoolingType | None, causal: bool, found: tuple[str, bool]) -> None:
    tiny.write_decoder(tmp_path / "m.gguf", pooling, causal=causal)
    meta = read_meta(tmp_path / "m.gguf")
    assert (meta.pooling, meta.whole) == found


def test_an_encoder_and_a_model_that_generates(tmp_path: Path) -> None:
    tiny.write_bert(tmp_path / "m.gguf", POOLING.CLS)
    meta = read_meta(tmp_path / "m.gguf")
    assert (meta.pooling, meta.is_whole, meta.able) == ("cls", True, ("embeddings",))
    meta = read_meta(tiny_models.write(tmp_path / "l.gguf", "llama"))
    assert (meta.pooling, meta.is_whole, meta.able) == ("", False, ("chat", "completions", "embeddings"))
