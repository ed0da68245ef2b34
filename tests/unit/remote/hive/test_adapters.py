"""Adapters of a catalog beside a model: found, counted, and refused where they do not go with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from rbee_remote.hive import planning
from rbee_remote.hive.fit.meter import subject_of
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.planning import Plan
from rbee_remote.protocol import ErrorCode, ModelInfo, ModelMeta, RemoteError, SpawnRequest, WorkerOptions
from rbee_remote.protocol.load import AdapterFile
from tests.unit.remote.hive.test_gpu_placement import META, NoMeter

ADAPTER = replace(META, n_layers=0, adapter=True)


class Shelf:
    """A catalog of files that are 100 MB each."""

    def __init__(self, folder: Path, **metas: ModelMeta) -> None:
        self._infos = {name: _info(folder, name, meta) for name, meta in metas.items()}

    def find(self, name: str) -> ModelInfo:
        if name not in self._infos:
            raise RemoteError(ErrorCode.MODEL_NOT_FOUND, f"{name} is not on this node")
        return self._infos[name]


def _info(folder: Path, name: str, meta: ModelMeta) -> ModelInfo:
    (folder / name).touch()
    return ModelInfo(name, str(folder / name), 10**8, "", owned=True, source="", added_at=0.0, meta=meta)


def plan(folder: Path, *lora: str, model: str = "m") -> Plan:
    qwen = replace(ADAPTER, architecture="qwen2")
    shelf = Shelf(folder, m=META, a=ADAPTER, b=ADAPTER, q=qwen)
    options = WorkerOptions(ctx=512, slots=1, backend="cpu", lora=lora)
    made = planning.make_plan(cast("Catalog", shelf), SpawnRequest(model, options), (), NoMeter())
    assert isinstance(made, Plan)
    return made


def test_they_are_loaded_in_their_order_and_count_as_weights(tmp_path: Path) -> None:
    plain, both = plan(tmp_path), plan(tmp_path, "b:0.5", "a:1")
    assert both.adapters == (AdapterFile("b", str(tmp_path / "b"), 0.5), AdapterFile("a", str(tmp_path / "a"), 1.0))
    assert both.need.weights == plain.need.weights + 2 * 10**8
    assert both.key.adapters == (str(tmp_path / "b"), str(tmp_path / "a"))
    assert not both.key.serves(plain.key)
    assert plain.adapters == ()


def test_what_is_measured_is_the_model(tmp_path: Path) -> None:
    plain, with_it = plan(tmp_path), plan(tmp_path, "a:1")
    assert with_it.key.options != plain.key.options
    subjects = {subject_of(str(tmp_path / "m"), made.key.options) for made in (plain, with_it)}
    assert len(subjects) == 1


@pytest.mark.parametrize(
    ("model", "lora", "code", "words"),
    [
        ("a", (), ErrorCode.USAGE, "a is a LoRA adapter and no model"),
        ("m", ("m:1",), ErrorCode.USAGE, "m is a model and no LoRA adapter"),
        ("m", ("a:1", "q:1"), ErrorCode.USAGE, "the adapter q is for qwen2 models, and m is of llama"),
        ("m", ("none:1",), ErrorCode.MODEL_NOT_FOUND, "none is not on this node"),
        ("m", ("\n",), ErrorCode.USAGE, "names no adapter"),
        ("m", ("a:1",) * 33, ErrorCode.USAGE, "a model takes 32 adapters at most, not 33"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(
    tmp_path: Path, model: str, lora: tuple[str, ...], code: ErrorCode, words: str
) -> None:
    with pytest.raises(RemoteError, match=words) as raised:
        plan(tmp_path, *lora, model=model)
    assert raised.value.code is code
