"""The programs that can be launched, and what each is told of the gateway: by its environment and its command line,
never by its configuration. Pure.

Sources
- claude: https://code.claude.com/docs/en/env-vars and …/llm-gateway.
- codex: https://developers.openai.com/codex/config-reference, `model_providers`; it speaks Responses alone.
- opencode: https://opencode.ai/docs/config (OPENCODE_CONFIG_CONTENT) and …/docs/providers.
- aider: https://aider.chat/docs/llms/openai-compat.html and …/docs/config/adv-model-settings.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: Where programs that take the name of a variable find the key.
KEY_VARIABLE = "RBEE_API_KEY"
#: Of the context, what an answer may take where a program wants to know.
_ANSWER_SHARE = 4
#: Milliseconds that claude and codex wait for an event: comments, by which they hear that a long prompt is being read,
#: are none to them. Their own 300,000 are less than a node without a GPU needs for a first prompt.
_PATIENCE_MS = 3_600_000
#: Hosts that are asked without a proxy.
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a program is offered. url: of the gateway, without /v1. model: its name there. ctx: tokens. folder: for
    files that it reads, which is gone when the program is."""

    url: str
    key: str
    model: str
    ctx: int
    folder: str = ""

    @property
    def api(self) -> str:
        """OpenAI's."""
        return f"{self.url}/v1"


@dataclass(frozen=True, slots=True)
class Told:
    """What a program is started with. arguments: before the user's. env: None for a variable that must not be there.
    limits: variables that the user's own go before. files: contents, by their names in the offer's folder."""

    arguments: tuple[str, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    """name: as its command is called. install: how one gets it."""

    name: str
    install: str
    told: Callable[[Offer], Told]


def _claude(offer: Offer) -> Told:
    """It has names of models for different work, and takes each for one with a context of 200,000 tokens. Without the
    attribution its prompts begin alike each time."""
    names = ("MODEL", "SMALL_FAST_MODEL", "DEFAULT_OPUS_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_HAIKU_MODEL")
    return Told(
        env={
            "ANTHROPIC_BASE_URL": offer.url,
            "ANTHROPIC_AUTH_TOKEN": offer.key,
            "ANTHROPIC_API_KEY": None,
            **{f"ANTHROPIC_{name}": offer.model for name in names},
            "CLAUDE_CODE_SUBAGENT_MODEL": offer.model,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_CODE_USE_BEDROCK": None,
            "CLAUDE_CODE_USE_VERTEX": None,
            "CLAUDE_CODE_USE_FOUNDRY": None,
        },
        limits={
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(offer.ctx),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(offer.ctx // _ANSWER_SHARE),
            "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(_PATIENCE_MS),
        },
    )


def _codex(offer: Offer) -> Told:
    """The model's name goes with the settings: some versions' subcommands have an -m of their own alone."""
    provider = {
        "name": "rbee",
        "base_url": offer.api,
        "env_key": KEY_VARIABLE,
        "wire_api": "responses",
        "stream_idle_timeout_ms": _PATIENCE_MS,
    }
    settings = {
        "model": json.dumps(offer.model),
        "model_provider": json.dumps("rbee"),
        "model_providers.rbee": "{"
        + ", ".join(f"{key} = {json.dumps(value)}" for key, value in provider.items())
        + "}",
        "model_context_window": str(offer.ctx),
    }
    given = tuple(word for key, value in settings.items() for word in ("-c", f"{key}={value}"))
    return Told(arguments=given, env={KEY_VARIABLE: offer.key})


def _opencode(offer: Offer) -> Told:
    limit = {"context": offer.ctx, "output": offer.ctx // _ANSWER_SHARE}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "rbee",
        "options": {"baseURL": offer.api, "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {offer.model: {"name": offer.model, "limit": limit}},
    }
    model = f"rbee/{offer.model}"
    config = {"provider": {"rbee": provider}, "model": model, "small_model": model}
    return Told(env={"OPENCODE_CONFIG_CONTENT": json.dumps(config), KEY_VARIABLE: offer.key})


def _aider(offer: Offer) -> Told:
    name, file = f"openai/{offer.model}", "aider-models.json"
    facts = {
        "max_input_tokens": offer.ctx,
        "max_output_tokens": offer.ctx // _ANSWER_SHARE,
        "input_cost_per_token": 0,
        "output_cost_per_token": 0,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    return Told(
        env={
            "OPENAI_API_BASE": offer.api,
            "OPENAI_API_KEY": offer.key,
            "AIDER_OPENAI_API_BASE": None,
            "AIDER_OPENAI_API_KEY": None,
            "AIDER_MODEL": name,
            "AIDER_WEAK_MODEL": name,
            "AIDER_MODEL_METADATA_FILE": f"{offer.folder}/{file}",
        },
        files={file: json.dumps({name: facts})},
    )


#: By name, in the order in which they are told.
PROGRAMS = {
    program.name: program
    for program in (
        Program("claude", "npm install -g @anthropic-ai/claude-code", _claude),
        Program("codex", "npm install -g @openai/codex", _codex),
        Program("opencode", "npm install -g opencode-ai", _opencode),
        Program("aider", "pipx install aider-chat", _aider),
    )
}


def environment(told: Told, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with what the program is told; its proxy is not asked for the gateway."""
    changed = {**told.limits, **environ, **told.env}
    if any(f"{scheme}_proxy" in {key.lower() for key in environ} for scheme in ("http", "https", "all")):
        names = ("no_proxy", "NO_PROXY")
        spared = dict.fromkeys(filter(None, (*(environ.get(name, "") for name in names), *_LOOPBACK)))
        changed |= dict.fromkeys(names, ",".join(spared))  # programs differ in which of the two they look at
    return {name: value for name, value in changed.items() if value is not None}
