"""Loading with options: KV types and flash attention that llama.cpp takes, and weights that are kept once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling, WorkerConfig, WorkerOptions
from rbee_remote.protocol.load_options import FLASH_ATTENTION, KV_TYPES
from rbee_remote.worker.engine.interface import BatchToken
from tests.unit.remote.hive.conftest import make_gguf

pytestmark = pytest.mark.model
REMOTE = Path(__file__).resolve().parents[5] / "remote"
#: Load a model, and print how large the process became by it, in MB.
_GROWTH = """
import sys
import psutil
from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.llama.engine import load_engine
config = WorkerConfig("0" * 16, "m", sys.argv[1], "", WorkerOptions(backend="cpu", threads=1), 256, 1.0)
before = psutil.Process().memory_info().rss
engine = load_engine(config, lambda share: True)
print((psutil.Process().memory_info().rss - before) / 1e6)
engine.close()
"""


def config(path: Path, **options: object) -> WorkerConfig:
    made = WorkerOptions(backend="cpu", threads=1, **options)  # type: ignore[arg-type]
    return WorkerConfig("0" * 16, "m", str(path), "", made, 256, 1.0, slots=2)


@pytest.mark.parametrize(
    ("kv_type", "flash_attention"),
    [("f16", "on"), ("f16", "off"), ("bf16", "auto"), ("f32", "auto"), ("q8_0", "auto"), ("q4_0", "on"),
     ("q5_1", "auto"), ("q5_0", "auto"), ("q4_1", "auto"), ("iq4_nl", "auto")],
)  # fmt: skip
def test_every_kv_type_generates(model_path: Path, kv_type: str, flash_attention: str) -> None:
    from rbee_remote.worker.llama.engine import load_engine

    engine = load_engine(config(model_path, kv_type=kv_type, flash_attention=flash_attention), lambda share: True)
    try:
        prompt = engine.tokenize("The capital of France is", add_special=True, parse_special=True)
        engine.start(1, Sampling(temperature=0.0), 1, prompt)
        assert engine.decode([BatchToken(token, at, 1, at == len(prompt) - 1) for at, token in enumerate(prompt)])
        assert engine.piece(engine.sample(1, len(prompt) - 1).token).startswith(b" ")
    finally:
        engine.close()


def test_llama_cpp_has_the_same_numbers() -> None:
    from llama_cpp import llama_cpp as llama

    known = {name: getattr(llama, f"GGML_TYPE_{name.upper()}", 30) for name in KV_TYPES}  # the bindings lack BF16
    assert {name: kind.ggml for name, kind in KV_TYPES.items()} == known
    words = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
    assert {word: getattr(llama, f"LLAMA_FLASH_ATTN_TYPE_{name}") for word, name in words.items()} == FLASH_ATTENTION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "q4_0", "flash_attention": "off"}, "needs flash attention"),
        ({"kv_type": "q2_k"}, "kv_type must be one of f16, bf16"),
        ({"flash_attention": "yes"}, "flash_attention must be one of auto, on, off"),
    ],
)
def test_what_llama_cpp_does_not_take_is_refused(model_path: Path, options: dict[str, str], message: str) -> None:
    from rbee_remote.worker.llama.engine import load_engine

    with pytest.raises(RemoteError, match=message) as failure:
        load_engine(config(model_path, **options), lambda share: True)
    assert failure.value.code is ErrorCode.USAGE


def test_weights_that_are_rearranged_for_the_processor_are_kept_once(model_path: Path, tmp_path: Path) -> None:
    """In Q4_0 they are, on most processors; the embedding, which is the output's matrix too, is kept as it was."""
    path = requantised(model_path, tmp_path / "q4_0.gguf", GGMLQuantizationType.Q4_0)
    env = dict(os.environ) | {"PYTHONPATH": str(REMOTE)}
    command = [sys.executable, "-c", _GROWTH, str(path)]
    growth = float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    libraries_cache_and_vocabulary_mb = 70
    assert growth < path.stat().st_size / 1e6 * 1.3 + libraries_cache_and_vocabulary_mb


def requantised(source: Path, target: Path, kind: GGMLQuantizationType) -> Path:
    """The model with its matrices in another quantisation."""
    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        is_list = field.types[0] is GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if is_list else None)
    for tensor in reader.tensors:
        if tensor.tensor_type is GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_model_that_cannot_be_measured_says_why(tmp_path: Path) -> None:
    from rbee_remote.protocol.measuring import MeasureRequest, Point
    from rbee_remote.worker.llama.memory import measure

    request = MeasureRequest(str(make_gguf(tmp_path / "m.gguf")), WorkerOptions(backend="cpu"), (Point(256, 1),))
    with pytest.raises(RemoteError, match="cannot load the model") as failure:
        measure(request)
    assert failure.value.code is ErrorCode.MODEL_INVALID


@pytest.mark.parametrize(
    ("sandbox", "backend", "told"),
    [("auto", "cpu", True), ("auto", "cuda", False), ("on", "cuda", True), ("off", "cpu", False)],
)
def test_libraries_that_cannot_be_loaded_may_be_out_of_the_sandbox_s_reach(
    sandbox: str, backend: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rbee_remote.worker.main import _load

    name = "rbee_remote.worker.llama.engine"
    monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    options = WorkerOptions(backend=backend)
    config = WorkerConfig("a" * 16, "m", "/none", "/none", options, 512, 60.0, sandbox=sandbox)
    with pytest.raises(RemoteError, match="cannot be loaded") as failure:
        _load(config, lambda _: True)
    assert failure.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert ('sandbox = "off"' in failure.value.hint) is told
    assert "remove the node's folder runtimes" in failure.value.hint
