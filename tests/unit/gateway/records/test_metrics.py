"""The page of /metrics, and the dashboard whose queries are read off it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rbee.gateway.records import metrics as metrics_module
from rbee.gateway.records.metrics import OTHER, Metrics
from rbee_remote.protocol import ErrorCode
from tests.doubles.constructors import FewNodes
from tests.unit.gateway.samples import CLIENT, MODEL, ended, nodes

DASHBOARD = Path(__file__).parents[4] / "docs" / "grafana" / "rbee-gateway.json"


def page(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render("")[0].decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[f"rbee_gateway_{name}", frozenset(labels.items())]


def watching(*models: str) -> Metrics:
    metrics = Metrics()
    metrics.watch(FewNodes(nodes(*models)), lambda: {MODEL: 3, "never seen": 2})
    return metrics


def test_the_fleet_is_shown_as_it_is() -> None:
    found = page(watching())
    assert value(found, "nodes", state="up") == value(found, "nodes", state="down") == 1
    assert value(found, "nodes", state="connecting") == 0
    assert value(found, "node_up", node="gpu1") == 1
    assert value(found, "node_up", node="gpu2") == 0
    assert value(found, "workers", node="gpu1", state="ready") == 1
    assert value(found, "workers", node="gpu2", state="ready") == 0
    for name, expected in (("slots", 4), ("slots_busy", 1), ("worker_queue", 2), ("requests_open", 1)):
        assert value(found, name, node="gpu1", model=MODEL) == expected
    assert value(found, "queue", model=MODEL) == 3
    assert value(found, "queue", model=OTHER) == 2


def test_requests_are_counted() -> None:
    metrics = watching()
    metrics.ended(ended())
    metrics.ended(ended(finish="WORKER_GONE", failovers=2, first_s=None, usage=None))
    metrics.ended(ended(finish="INVALID_API_KEY", model="", worker=None))
    found = page(metrics)
    assert value(found, "requests_total", key="alice", model=MODEL, outcome="ok") == 1
    assert value(found, "requests_total", key="alice", model=MODEL, outcome="worker_gone") == 1
    assert value(found, "errors_total", node="gpu1", code="worker_gone") == 1
    assert value(found, "errors_total", node="", code="invalid_api_key") == 1
    assert value(found, "failovers_total", model=MODEL) == 2
    assert value(found, "prompt_tokens_total", key="alice", model=MODEL) == 100
    assert value(found, "cached_tokens_total", key="alice", model=MODEL) == 60
    assert value(found, "generated_tokens_total", key="alice", model=MODEL) == 11
    assert value(found, "time_to_first_token_seconds_sum", model=MODEL) == 0.5
    assert value(found, "time_per_output_token_seconds_sum", model=MODEL) == pytest.approx(0.1)
    assert value(found, "request_seconds_count", model=MODEL) == 2


def test_how_late_the_loop_is_counts_by_buckets() -> None:
    metrics = watching()
    for seconds in (0.0004, 0.0006, 0.03):
        metrics.lagged(seconds)
    found = page(metrics)
    assert [value(found, "loop_lag_seconds_bucket", le=le) for le in ("0.001", "0.02", "0.05")] == [2, 2, 3]


def test_a_client_chooses_no_label() -> None:
    metrics = watching("hf:a/b:Q4")
    for number in range(3000):
        metrics.ended(ended(model=f"hf:evil/{number}", finish=f"CODE{number}"))
    metrics.ended(ended(model="hf:a/b:Q4"))
    labels = {pair for _, found in page(metrics) for pair in found}
    assert {model for name, model in labels if name == "model"} == {MODEL, OTHER, "hf:a/b:Q4"}
    codes = {code.value.lower() for code in ErrorCode} | {"ok", "other"}
    assert {each for name, each in labels if name in ("outcome", "code")} <= codes


def test_a_node_with_endless_models_gets_as_many_labels_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MOST_MODELS", 5)
    metrics = watching(*(f"model{number}" for number in range(10)))
    for number in range(10):
        metrics.ended(ended(model=f"model{number}"))
    models = {dict(labels).get("model") for name, labels in page(metrics) if name.endswith("requests_total")}
    assert len(models) == 5 + 1


def test_openmetrics_for_who_asks() -> None:
    content, media_type = watching().render("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert content.endswith(b"# EOF\n")


# --- the dashboard ----------------------------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return found + [variable["query"] for variable in variables if variable["type"] == "query"]


def full_page() -> dict[str, set[str]]:
    """Every sample's name on a page after one request of each kind, with its labels' names."""
    metrics = watching()
    metrics.ended(ended(failovers=1))
    metrics.ended(ended(finish="WORKER_GONE"))
    found: dict[str, set[str]] = {}
    for name, labels in page(metrics):
        found.setdefault(name, set()).update(label for label, _ in labels)
    return found


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_every_query_of_the_dashboard_finds_its_samples_and_labels(query: str) -> None:
    known = full_page()
    bare = re.sub(r'"[^"]*"', '""', query)
    names = set(re.findall(r"\b(?:rbee|process)_\w+", bare))
    assert names
    assert names <= set(known), names - set(known)
    labels = {label for name in names for label in known[name]}
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", bare))
    used |= {word.strip() for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", bare) for word in group.split(",")}
    assert used <= labels, used - labels


def test_the_dashboard_shows_every_metric_of_the_gateway() -> None:
    shown = {name for query in queries() for name in re.findall(r"\brbee_gateway_\w+", query)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    known = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in full_page()
        if name.startswith("rbee_gateway_") and not name.endswith("_created")
    }
    assert known - shown == {"rbee_gateway_info"}


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] == "rbee gateway"
    assert dashboard["id"] is None
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in panels())
    assert CLIENT.key not in DASHBOARD.read_text()
