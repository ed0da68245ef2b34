"""A step is computed when `decode` returns, on GPUs too: what follows holds the lock that the event loop needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import BatchToken
from tests import tiny_models

pytestmark = pytest.mark.model


def test_the_device_is_waited_for_within_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cpp import llama_cpp as llama

    from rbee_remote.worker.llama.engine import load_engine

    path = tiny_models.write(tmp_path / "m.gguf", "llama")
    config = WorkerConfig("0" * 16, "m", str(path), "", WorkerOptions(backend="cpu", threads=1), 256, 1.0, slots=1)
    engine = load_engine(config, lambda _: True)
    said: list[str] = []
    for name in ("llama_decode", "llama_synchronize"):
        whole = getattr(llama, name)

        def spy(*arguments: object, name: str = name, whole: Callable[..., object] = whole) -> object:
            said.append(name)
            return whole(*arguments)

        monkeypatch.setattr(llama, name, spy)
    try:
        assert engine.decode([BatchToken(3, 0, 0, True)])
    finally:
        engine.close()
    assert said == ["llama_decode", "llama_synchronize"]
