"""What the protocol says that a worker serves is what it serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rbee_remote.protocol import endpoints
from rbee_remote.worker.http.anthropic.routes import anthropic_routes
from rbee_remote.worker.http.llama_server.routes import llama_server_routes
from rbee_remote.worker.http.openai.routes import openai_routes
from rbee_remote.worker.http.responses.routes import responses_routes


def test_each_route_that_takes_a_post_is_known_to_who_starts_workers() -> None:
    service: Any = SimpleNamespace(config=SimpleNamespace(slots=1, queue=1))
    routes = [
        *openai_routes(service),
        *responses_routes(service),
        *anthropic_routes(service),
        *llama_server_routes(service),
    ]
    served = {route.path for route in routes if "POST" in (route.methods or ())}
    assert served
    assert [path for path in served if not endpoints.is_served(path)] == []
    assert {f"/v1{path.removeprefix('/v1')}" for path in served} == endpoints.SERVED
    assert not endpoints.is_served("/v1/nonsense")
    assert not endpoints.is_served("/v1/v1/completions")
