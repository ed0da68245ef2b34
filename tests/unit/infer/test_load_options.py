"""How a model is to be loaded: the request's word before the inventory's, and what only a hive can tell."""

from __future__ import annotations

from typing import Any

import pytest

from rbee.cli.load_options import load_options
from rbee.infer.load_options import is_for_the_hive, worker_options
from rbee.infer.request import InferRequest
from rbee.inventory import Node, load_value
from rbee_remote.protocol import WorkerOptions

NODE = Node("gpu1", backend="cuda", slots=2, ctx=0, kv_type="q8_0", devices=("CUDA1",), gpu_layers=10)


@pytest.mark.parametrize(
    ("node", "request_", "expected"),
    [
        (Node("a"), {}, WorkerOptions()),
        (NODE, {}, WorkerOptions(0, 2, "cuda", 10, kv_type="q8_0", devices=("CUDA1",))),
        (
            NODE,
            {"ctx": 512, "slots": 1, "kv_type": "f16", "devices": ("0", "1"), "tensor_split": (3.0, 1.0)},
            WorkerOptions(512, 1, "cuda", 10, devices=("0", "1"), tensor_split=(3.0, 1.0)),
        ),
        (NODE, {"gpu_layers": -1, "ctx": 0}, WorkerOptions(0, 2, "cuda", None, kv_type="q8_0", devices=("CUDA1",))),
        (Node("a", gpu_layers=-1), {"gpu_layers": 0}, WorkerOptions(gpu_layers=0)),
        (Node("a"), {"flash_attention": "off"}, WorkerOptions(flash_attention="off")),
    ],
)
def test_the_requests_options_go_before_the_nodes(
    node: Node, request_: dict[str, Any], expected: WorkerOptions
) -> None:
    assert worker_options(InferRequest(**request_), node) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"ctx": "auto", "slots": "2"}, {"ctx": 0, "slots": 2}),
        ({"ctx": "4096", "kv_type": "q4_0"}, {"ctx": 4096, "kv_type": "q4_0"}),
        ({"device": ["CUDA0", "1"]}, {"devices": ("CUDA0", "1")}),
        ({"tensor_split": "3, 1.5"}, {"tensor_split": (3.0, 1.5)}),
        ({"gpu_layers": "auto"}, {"gpu_layers": -1}),
        ({"gpu_layers": "all"}, {"gpu_layers": 4096}),
        ({"gpu_layers": "12", "flash_attention": "on"}, {"gpu_layers": 12, "flash_attention": "on"}),
    ],
)
def test_words_of_the_command_line_become_fields(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert load_options(**given) == expected
    InferRequest(**expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"ctx": 4096, "slots": 2}, False),
        ({"ctx": 0}, True),
        ({"kv_type": "f16"}, True),
        ({"devices": ("0",)}, True),
        ({"gpu_layers": -1}, True),
        ({"flash_attention": "auto"}, True),
    ],
)
def test_what_the_registry_does_not_know_is_asked_of_the_hive(fields: dict[str, Any], expected: bool) -> None:
    assert is_for_the_hive(InferRequest(**fields)) is expected


def test_numbers_that_stand_for_words_are_shown_as_words() -> None:
    node = Node("a", ctx=0, gpu_layers=4096, devices=("CUDA0",))
    shown = {key: load_value(node, key) for key in ("slots", "ctx", "gpu_layers", "devices")}
    assert shown == {"slots": None, "ctx": "auto", "gpu_layers": "all", "devices": ["CUDA0"]}
    assert load_value(Node("a", gpu_layers=-1), "gpu_layers") == "auto"
