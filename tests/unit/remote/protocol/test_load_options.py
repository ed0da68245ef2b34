"""How a model is to be loaded: the request's word before the inventory's."""

from __future__ import annotations

import dataclasses

import pytest

from rbee_remote.protocol import LoadOptions, WorkerOptions
from rbee_remote.protocol.load_options import KV_TYPES, OPTIONS, QUANTISED_KV, Adapter, is_open

NODE = LoadOptions(slots=2, ctx=0, kv_type="q8_0", devices=("CUDA1",), gpu_layers=10)


@pytest.mark.parametrize(
    ("node", "request_", "expected"),
    [
        (LoadOptions(), LoadOptions(), WorkerOptions()),
        (NODE, LoadOptions(), WorkerOptions(0, 2, gpu_layers=10, kv_type="q8_0", devices=("CUDA1",))),
        (
            NODE,
            LoadOptions(ctx=512, slots=1, kv_type="f16", devices=("0", "1"), tensor_split=(3.0, 1.0)),
            WorkerOptions(512, 1, gpu_layers=10, devices=("0", "1"), tensor_split=(3.0, 1.0)),
        ),
        (NODE, LoadOptions(gpu_layers=-1, ctx=0), WorkerOptions(0, 2, kv_type="q8_0", devices=("CUDA1",))),
        (LoadOptions(gpu_layers=-1), LoadOptions(gpu_layers=0), WorkerOptions(gpu_layers=0)),
        (LoadOptions(), LoadOptions(flash_attention="off"), WorkerOptions(flash_attention="off")),
    ],
)
def test_the_requests_options_go_before_the_nodes(
    node: LoadOptions, request_: LoadOptions, expected: WorkerOptions
) -> None:
    assert request_.over(node).for_worker() == expected
    assert request_.over(node).for_worker("cuda") == dataclasses.replace(expected, backend="cuda")


def test_what_nobody_said_is_not_among_what_was_said() -> None:
    assert LoadOptions().said() == {}
    assert LoadOptions(ctx=0, devices=()).said() == {"ctx": 0, "devices": ()}


def test_numbers_that_stand_for_words_are_shown_as_words() -> None:
    shown = LoadOptions(ctx=0, gpu_layers=4096, devices=("CUDA0",)).plain()
    assert {name: value for name, value in shown.items() if value is not None} == {
        "ctx": "auto",
        "gpu_layers": "all",
        "devices": ["CUDA0"],
    }
    assert shown.keys() == OPTIONS.keys()
    assert LoadOptions(gpu_layers=-1).plain()["gpu_layers"] == "auto"


def test_a_hive_can_be_asked_for_whatever_can_be_said() -> None:
    assert OPTIONS.keys() <= {field.name for field in dataclasses.fields(WorkerOptions)}


@pytest.mark.parametrize(
    ("text", "name", "scale"),
    [
        ("/a.gguf", "/a.gguf", 1.0),
        ("/a.gguf:0.5", "/a.gguf", 0.5),
        ("/a.gguf:-1:1", "/a.gguf:-1", 1.0),
        ("hf:o/r:Q8_0", "hf:o/r:Q8_0", 1.0),
        ("hf:o/r:2", "hf:o/r", 2.0),
        ("/a.gguf:1e9", "/a.gguf:1e9", 1.0),
    ],
)
def test_an_adapters_scale_stands_behind_its_name(text: str, name: str, scale: float) -> None:
    adapter = Adapter.of(text)
    assert adapter == (name, scale)
    assert Adapter.of(adapter.text) == adapter


def test_who_names_no_adapter_means_none_and_any_device() -> None:
    assert is_open("devices", ())
    assert not is_open("lora", ())


def test_quantised_types_come_in_blocks() -> None:
    assert KV_TYPES.keys() - QUANTISED_KV == {"f16", "bf16", "f32"}
