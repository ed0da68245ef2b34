"""What `rbee models search` and `rbee models list --available` show."""

from __future__ import annotations

import pytest

from rbee.cli.models_search import available_table, found_table
from rbee.fleet.search import Found
from rbee.models.ref import built_in
from rbee_remote.protocol.search import Fits, FoundModel, FoundQuant

QUANTS = (
    FoundQuant("m-Q4_K_M.gguf", "Q4_K_M", 5 * 10**9, 1, (Fits("gpu1", True, 9000), Fits("gpu2", True, 9000))),
    FoundQuant("m-Q8_0.gguf", "Q8_0", 9 * 10**9, 1, (Fits("gpu1", False, 13_000), Fits("gpu2", False, 13_500))),
    FoundQuant("m.gguf", "", None, 1),
)
MODELS = (
    FoundModel("o/m-GGUF", 1234, False, "apache-2.0", "llama", 32768, QUANTS),
    FoundModel("o/private", 5, True, "", "", 0, ()),
)


def test_each_quantisation_is_a_row_with_the_nodes_that_have_the_memory() -> None:
    table = found_table(Found(MODELS, (), ()), 32768)
    assert table.columns[-1] == "FITS WITH 32,768 TOKENS"
    assert [row[0] for row in table.rows] == [
        "hf:o/m-GGUF:Q4_K_M",
        "hf:o/m-GGUF:Q8_0",
        "hf:o/m-GGUF:m.gguf",
        "hf:o/private",
    ]
    assert [row[-1] for row in table.rows] == ["gpu1, gpu2", "none, it needs 13,000 MB", "-", "-"]
    assert table.data[0]["fits"][0] == {"node": "gpu1", "fits": True, "needed_mb": 9000, "free": None}
    assert table.data[1]["size"] == 9 * 10**9


def test_of_files_with_one_quantisation_each_is_named_by_its_file() -> None:
    quants = tuple(FoundQuant(name, "Q8_0", 1, 1) for name in ("m-Q8_0.gguf", "m-v2-Q8_0.gguf", "old/m-Q8_0.gguf"))
    table = found_table(Found((FoundModel("o/r", 1, False, "", "llama", 0, quants),), (), ()), 32768)
    assert [row[0] for row in table.rows] == [f"hf:o/r:{quant.file}" for quant in quants]


def test_a_model_of_less_context_than_was_asked_for_says_so() -> None:
    model = FoundModel("o/r", 1, False, "", "llama", 8192, QUANTS[:2])
    table = found_table(Found((model,), (), ()), 32768)
    assert [row[-1] for row in table.rows] == ["gpu1, gpu2 (with 8,192)", "none, it needs 13,000 MB (with 8,192)"]


def test_all_short_names_are_listed() -> None:
    table = available_table()
    assert [row[0] for row in table.rows] == list(built_in())
    assert {"chat", "embedding", "rerank"} == {entry["kind"] for entry in table.data}


@pytest.mark.parametrize(
    ("free", "shown"), [(None, "gpu1, gpu2"), (True, "gpu1, gpu2"), (False, "gpu1 (in use now), gpu2")]
)
def test_memory_that_somebody_has_now_is_told(free: bool | None, shown: str) -> None:
    quants = (FoundQuant("m.gguf", "Q8_0", 9, 1, (Fits("gpu1", True, 13, free), Fits("gpu2", True, 13, True))),)
    table = found_table(Found((FoundModel("o/r", 1, False, "", "llama", 32768, quants),), (), ()), 32768)
    assert table.rows[0][-1] == shown
