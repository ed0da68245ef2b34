"""How a model is loaded, from the command line to the worker: on this machine, without SSH."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testbed.cli import Rbee

pytestmark = pytest.mark.model


def ask(rbee: Rbee, *options: str) -> str:
    """Ask something; the id of the worker that answered."""
    worker: str = rbee("infer", "--json", "--max-tokens", "2", *options, "Hello").lines()[-1]["worker"]
    return worker


def workers(rbee: Rbee) -> dict[str, dict[str, Any]]:
    return {worker["id"]: worker for worker in rbee("workers", "list", "--json").json()}


def test_a_worker_has_the_options_that_were_asked_for_and_is_found_again(ready_rbee: Rbee) -> None:
    options = ("--ctx", "auto", "--slots", "2", "--kv-type", "q8_0")
    largest = ask(ready_rbee, *options)
    assert ask(ready_rbee, *options) == largest
    worker = workers(ready_rbee)[largest]
    assert (worker["ctx"], worker["slots"], worker["options"]["kv_type"]) == (8192, 2, "q8_0")
    plain = ask(ready_rbee)
    assert plain != largest, "who asks for nothing in particular gets what the node's entry says"
    assert ask(ready_rbee, "--kv-type", "f16") == plain
    worker = workers(ready_rbee)[plain]
    assert (worker["ctx"], worker["slots"], worker["options"]["kv_type"]) == (4096, 4, "f16")
    one = ask(ready_rbee, "--slots", "1")
    assert one not in (largest, plain)
    assert ask(ready_rbee, "--slots", "1") == one


def test_with_little_memory_there_are_fewer_slots_and_less_context(ready_rbee: Rbee) -> None:
    ready_rbee.env["RBEE_RAM_LIMIT_MB"] = "420"  # the hive inherits it
    few = ask(ready_rbee)
    worker = workers(ready_rbee)[few]
    assert worker["ctx"] == 4096
    assert worker["slots"] in (1, 2, 3)
    assert worker["rss_mb"] <= 420
    assert ask(ready_rbee, "--kv-type", "f16") == few
    ready_rbee("workers", "stop", few)
    largest = ask(ready_rbee, "--ctx", "auto", "--slots", "2")
    worker = workers(ready_rbee)[largest]
    assert 2048 < worker["ctx"] < 8192
    assert worker["ctx"] % 256 == 0


def test_what_a_model_needs_is_shown(ready_rbee: Rbee) -> None:
    ask(ready_rbee)
    shown = ready_rbee("models", "show", "smollm2:135m", "--slots", "1").stdout
    assert "Q4_1" in shown
    assert "8,192 tokens with 1 slot" in shown
    (needs,) = ready_rbee("models", "show", "smollm2:135m", "--ctx", "2048", "--slots", "4", "--json").json()["models"]
    (point,) = needs["points"]
    assert (point["ctx"], point["slots"], point["fits"], needs["measured"]) == (2048, 4, True, True)
    missing = ready_rbee("models", "show", "hf:a/b:Q4_K_M", status=6)
    assert "on none of" in missing.stderr or "is not on local" in missing.stderr
