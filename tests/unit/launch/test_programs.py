"""What each program is told of the gateway."""

from __future__ import annotations

import json
import tomllib

import pytest

from rbee.base.errors import RefusedError, UsageError
from rbee.launch.gateway import OneKeyGate, new_key
from rbee.launch.programs import PROGRAMS, Offer, Told, environment
from rbee.launch.run import find

OFFER = Offer("http://127.0.0.1:4711", "rbee-secret", "qwen3-8b", 32768, "/tmp/of-this-run")


def told(name: str) -> Told:
    return PROGRAMS[name].told(OFFER)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_key_is_in_the_environment_and_nowhere_else(name: str) -> None:
    given = told(name)
    assert OFFER.key in given.env.values()
    others = (*given.arguments, *given.files.values(), *(value for value in given.env.values() if value != OFFER.key))
    assert not [text for text in others if text and OFFER.key in text]


def test_claude_asks_the_gateway_for_whatever_model_and_no_cloud() -> None:
    env = told("claude").env
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4711", "it adds /v1 itself"
    models = {value for name, value in env.items() if name.endswith("_MODEL")}
    assert models == {"qwen3-8b"}
    assert (
        environment(told("claude"), {"ANTHROPIC_API_KEY": "sk-x", "CLAUDE_CODE_USE_VERTEX": "1"}).keys()
        & {
            "ANTHROPIC_API_KEY",
            "CLAUDE_CODE_USE_VERTEX",
        }
        == set()
    )


def test_claude_knows_of_the_context_and_waits_unless_the_user_says_otherwise() -> None:
    given = environment(told("claude"), {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "64"})
    assert given["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "32768"
    assert given["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "64"
    assert environment(told("claude"), {})["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "8192"
    assert int(given["CLAUDE_STREAM_IDLE_TIMEOUT_MS"]) > 300_000, "its own"


def test_codex_gets_a_provider_by_its_command_line() -> None:
    given = told("codex")
    assert set(given.arguments[::2]) == {"-c"}
    settings = tomllib.loads("\n".join(given.arguments[1::2]))
    assert settings["model"] == "qwen3-8b"
    assert settings["model_providers"][settings["model_provider"]] == {
        "name": "rbee",
        "base_url": "http://127.0.0.1:4711/v1",
        "env_key": "RBEE_API_KEY",
        "wire_api": "responses",
        "stream_idle_timeout_ms": 3_600_000,
    }
    assert settings["model_context_window"] == 32768


def test_opencode_gets_its_configuration_by_a_variable() -> None:
    config = json.loads(told("opencode").env["OPENCODE_CONFIG_CONTENT"] or "")
    assert config["model"] == config["small_model"] == "rbee/qwen3-8b"
    provider = config["provider"]["rbee"]
    assert provider["options"] == {"baseURL": "http://127.0.0.1:4711/v1", "apiKey": "{env:RBEE_API_KEY}"}
    assert provider["models"]["qwen3-8b"]["limit"] == {"context": 32768, "output": 8192}


def test_aider_reads_of_the_context_in_a_file_of_this_run() -> None:
    given = told("aider")
    (content,) = given.files.values()
    assert given.env["AIDER_MODEL_METADATA_FILE"] == "/tmp/of-this-run/aider-models.json"
    assert json.loads(content)[str(given.env["AIDER_MODEL"])]["max_input_tokens"] == 32768


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:1"}, "127.0.0.1,localhost"),
        ({"http_proxy": "http://p:1", "no_proxy": "lab"}, "lab,127.0.0.1,localhost"),
        ({"http_proxy": "http://p:1", "NO_PROXY": "lab"}, "lab,127.0.0.1,localhost"),
        ({"http_proxy": "http://p:1", "NO_PROXY": "a", "no_proxy": "b"}, "b,a,127.0.0.1,localhost"),
        ({"no_proxy": "lab"}, "lab"),
    ],
)
def test_the_gateway_is_asked_without_a_proxy(environ: dict[str, str], expected: str | None) -> None:
    assert environment(Told(), environ).get("no_proxy") == expected


def test_the_gate_knows_its_own_key_alone() -> None:
    key = new_key()
    gate = OneKeyGate(key, "launch-claude")
    assert gate.admit({"x-api-key": key}, "127.0.0.1").key == "launch-claude"
    for headers in ({}, {"authorization": "Bearer rbee-x"}, {"authorization": f"Bearer {key}é"}):
        with pytest.raises(RefusedError):
            gate.admit(headers, "127.0.0.1")


def test_what_cannot_be_launched_says_what_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="claude, codex, opencode, aider"):
        find("emacs")
    with pytest.raises(UsageError) as missing:
        find("codex")
    assert "npm install" in missing.value.hint
