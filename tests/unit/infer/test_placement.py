"""Placement as a table."""

from __future__ import annotations

from typing import Any

import pytest

from rbee.base.errors import UsageError
from rbee.infer.placement import Reuse, Spawn, place
from rbee.inventory import Node
from rbee.registry import WorkerRow
from rbee_remote.protocol import LoadOptions

MODEL = "smollm2:135m"
LOCAL, A, B = Node("local"), Node("a", host="a"), Node("b", host="b", max_workers=1)


def model_of(_: Node) -> str:
    return MODEL


def row(
    node: str,
    *,
    model: str = MODEL,
    state: str = "idle",
    free: int = 1,
    ctx: int = 4096,
    secret: str = "5ec2e75f" * 4,
    device: str = "cpu",
    **loaded: str,
) -> WorkerRow:
    loaded_as = {"kv_type": "f16", "flash_attention": "auto", "devices": "", "tensor_split": "", "lora": ""}
    loaded_as["pooling"] = "auto"
    return WorkerRow(
        node=node,
        worker_id="0" * 16,
        model=model,
        backend="cpu",
        device=device,
        state=state,
        socket="/s",
        slots=4,
        slots_free=free,
        ctx=ctx,
        keep_alive_s=300.0,
        boot_id="",
        pid=1,
        start_ticks=1,
        hive_instance="",
        payload="",
        created_at="",
        last_seen_at="",
        loaded=loaded_as | loaded,
        secret=secret,
    )


@pytest.mark.parametrize(
    ("nodes", "rows", "ctx", "expected"),
    [
        pytest.param([A], [], None, "spawn a", id="a named node, nothing known"),
        pytest.param([A], [row("b")], None, "spawn a", id="a named node wins over a loaded one elsewhere"),
        pytest.param([A, B, LOCAL], [row("b")], None, "reuse b", id="the node that has the model"),
        pytest.param([A, B, LOCAL], [row("b", state="ready")], None, "reuse b", id="ready has a free slot too"),
        pytest.param([A, B, LOCAL], [row("b", free=0, state="busy")], None, "spawn a", id="no free slot"),
        pytest.param([A, B, LOCAL], [row("b", state="loading")], None, "spawn a", id="still loading"),
        pytest.param([A, B, LOCAL], [row("b", model="other")], None, "spawn a", id="another model"),
        pytest.param([A, B], [row("b", ctx=2048)], 4096, "spawn a", id="its context is too small"),
        pytest.param([A, B], [row("b", ctx=8192)], 4096, "reuse b", id="its context is large enough"),
        pytest.param([B, A], [row("b", model="other", state="busy", free=0)], None, "spawn a", id="first with room"),
        pytest.param([B, A], [row("b", model="other")], None, "spawn b", id="an idle worker gives way"),
        pytest.param([LOCAL, A], [], None, "spawn a", id="local is the last resort"),
        pytest.param([B, LOCAL], [row("b", model="x", state="busy", free=0)], None, "spawn local", id="else local"),
        pytest.param([LOCAL, A], [row("local")], None, "reuse local", id="local, where the model is loaded there"),
    ],
)
def test_place(nodes: list[Node], rows: list[WorkerRow], ctx: int | None, expected: str) -> None:
    decision = place(nodes, rows, model_of, LoadOptions(ctx=ctx))
    assert f"{type(decision).__name__.lower()} {decision.node.name}" == expected
    assert isinstance(decision, Reuse | Spawn)


@pytest.mark.parametrize(
    ("node", "slots", "expected"),
    [
        (A, None, Reuse),
        (A, 4, Reuse),
        (A, 2, Spawn),
        (Node("a", host="a", load=LoadOptions(slots=4)), None, Reuse),
        (Node("a", host="a", load=LoadOptions(slots=2)), None, Spawn),
        (Node("a", host="a", load=LoadOptions(slots=2)), 4, Reuse),
        (Node("a", host="a", load=LoadOptions(ctx=8192)), None, Spawn),
        (Node("a", host="a", load=LoadOptions(ctx=0)), None, Reuse),
    ],
)
def test_what_the_request_says_goes_before_what_the_node_does(
    node: Node, slots: int | None, expected: type[Reuse | Spawn]
) -> None:
    assert isinstance(place([node], [row("a")], model_of, LoadOptions(slots=slots)), expected)


@pytest.mark.parametrize(
    ("load", "is_asked"),
    [
        (LoadOptions(), False),
        (LoadOptions(ctx=4096, slots=4), False),
        (LoadOptions(ctx=0), True),
        (LoadOptions(kv_type="f16"), True),
        (LoadOptions(devices=("0",)), True),
        (LoadOptions(gpu_layers=-1), True),
        (LoadOptions(flash_attention="auto"), True),
        (LoadOptions(lora=("file:/a.gguf:1",)), True),
    ],
)
def test_where_no_row_can_tell_the_hive_is_asked(load: LoadOptions, is_asked: bool) -> None:
    hint = row("local")
    assert place([A, LOCAL], [hint], model_of, load) == (Spawn(A) if is_asked else Reuse(LOCAL, hint))


def test_who_waits_for_a_gpu_gets_no_warm_worker_of_a_cpu() -> None:
    on_cpu, on_gpu = row("a"), row("b", device="NVIDIA L4")
    assert place([A, B], [on_cpu, on_gpu], model_of) == Reuse(A, on_cpu)
    assert place([A, B], [on_cpu, on_gpu], model_of, wait_for_gpu=True) == Reuse(B, on_gpu)
    assert place([A], [on_cpu], model_of, wait_for_gpu=True) == Spawn(A)
    # It counts among the workers of its node all the same.
    assert place([B, A], [row("b", state="ready")], model_of, wait_for_gpu=True) == Spawn(A)


def test_of_two_workers_the_one_with_more_free_slots() -> None:
    decision = place([A], [row("a", free=1), row("a", free=3)], model_of)
    assert isinstance(decision, Reuse)
    assert decision.row.slots_free == 3


def test_each_node_may_have_a_model_of_its_own() -> None:
    models = {"a": "one", "b": "other"}
    rows = [row("a", model="other"), row("b", model="other")]
    assert place([A, B], rows, lambda node: models[node.name]) == Reuse(B, rows[1])


def test_no_nodes_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no node"):
        place([], [], model_of)


@pytest.mark.parametrize(
    ("node", "loaded", "expected"),
    [
        (A, {"kv_type": "q8_0"}, Spawn),
        (A, {"lora": "file:/a.gguf:1"}, Spawn),  # who names no adapter wants none
        (Node("a", host="a", load=LoadOptions(lora=("file:/a.gguf:1",))), {"lora": "file:/a.gguf:1"}, Reuse),
        (Node("a", host="a", load=LoadOptions(lora=("file:/a.gguf:1",))), {}, Spawn),
        (A, {"flash_attention": "off"}, Spawn),
        (A, {"pooling": "mean"}, Spawn),  # it only embeds
        (Node("a", host="a", load=LoadOptions(pooling="mean")), {"pooling": "mean"}, Reuse),
        (A, {"kv_type": "", "flash_attention": ""}, Spawn),  # a registry of an older rbee
        (A, {"devices": "CUDA1", "tensor_split": "1.0"}, Reuse),  # the hive takes any for a node that names none
        (Node("a", host="a", load=LoadOptions(kv_type="q8_0")), {"kv_type": "q8_0"}, Reuse),
        (Node("a", host="a", load=LoadOptions(kv_type="q8_0")), {}, Spawn),
        (Node("a", host="a", load=LoadOptions(devices=("CUDA0", "1"))), {"devices": "CUDA0,1"}, Reuse),
        (Node("a", host="a", load=LoadOptions(devices=("CUDA0",))), {"devices": "CUDA1"}, Spawn),
        (Node("a", host="a", load=LoadOptions(tensor_split=(3.0, 1.0))), {"tensor_split": "3.0,1.0"}, Reuse),
        (Node("a", host="a", load=LoadOptions(tensor_split=(3.0, 1.0))), {"tensor_split": ""}, Spawn),
    ],
)
def test_a_worker_that_was_loaded_in_another_way_is_not_taken_for_the_nodes(
    node: Node, loaded: dict[str, Any], expected: type
) -> None:
    assert isinstance(place([node], [row("a", **loaded)], model_of), expected)


@pytest.mark.parametrize(
    ("ctx", "has", "expected"),
    [(None, 4096, Reuse), (None, 512, Spawn), (512, 512, Reuse), (512, 4096, Reuse), (8192, 4096, Spawn)],
)
def test_a_worker_with_the_context_that_is_needed_or_more(
    ctx: int | None, has: int, expected: type[Reuse | Spawn]
) -> None:
    assert isinstance(place([A], [row("a", ctx=has)], model_of, LoadOptions(ctx=ctx)), expected)


def test_the_hive_of_the_node_with_a_small_worker_says_whether_it_is_enough() -> None:
    small, large = row("b", ctx=512, free=3), row("b", ctx=4096)
    assert place([A, B], [small], model_of) == Spawn(B)
    assert place([A, B], [small, large], model_of) == Reuse(B, large)
    assert place([A, B], [row("a", ctx=512), large], model_of) == Reuse(B, large)
