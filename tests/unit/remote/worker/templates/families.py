"""Chat templates that people run, as llama.cpp brings them for its own tests, and chats to render with them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from rbee_remote.protocol import Message
from tests.testbed import assets

#: Families and their files.
FAMILIES = {
    "Apertus": "Apertus-8B-Instruct",
    "Command A": "Cohere2MoE",
    "Command R+": "CohereForAI-c4ai-command-r-plus-tool_use",
    "Command R7B": "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "DeepSeek R1": "llama-cpp-deepseek-r1",
    "DeepSeek R1 Distill": "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "DeepSeek V3.1": "deepseek-ai-DeepSeek-V3.1",
    "DeepSeek V3.2": "deepseek-ai-DeepSeek-V3.2",
    "Devstral": "unsloth-mistral-Devstral-Small-2507",
    "Firefunction": "fireworks-ai-llama-3-firefunction-v2",
    "GLM 4.6": "GLM-4.6",
    "GLM 4.7": "GLM-4.7-Flash",
    "Gemma 2": "google-gemma-2-2b-it",
    "Gemma 4": "google-gemma-4-31B-it",
    "Granite 3.3": "ibm-granite-granite-3.3-2B-Instruct",
    "Granite 4": "ibm-granite-granite-4.0",
    "Hermes 2 Pro": "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "Hermes 3": "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Kimi K2": "Kimi-K2-Instruct",
    "Kimi K2 Thinking": "Kimi-K2-Thinking",
    "LFM 2": "LFM2-8B-A1B",
    "Llama 3.1": "meta-llama-Llama-3.1-8B-Instruct",
    "Llama 3.2": "meta-llama-Llama-3.2-3B-Instruct",
    "Llama 3.3": "meta-llama-Llama-3.3-70B-Instruct",
    "MiniMax M2": "MiniMax-M2",
    "Ministral 3": "mistralai-Ministral-3-14B-Reasoning-2512",
    "Mistral Nemo": "mistralai-Mistral-Nemo-Instruct-2407",
    "Mistral Small 3.2": "Mistral-Small-3.2-24B-Instruct-2506",
    "Nemotron 3": "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "Nemotron Nano 2": "NVIDIA-Nemotron-Nano-v2",
    "Phi 3.5": "microsoft-Phi-3.5-mini-instruct",
    "QwQ": "Qwen-QwQ-32B",
    "Qwen 2.5": "Qwen-Qwen2.5-7B-Instruct",
    "Qwen 3": "Qwen-Qwen3-0.6B",
    "Qwen 3 Coder": "Qwen3-Coder",
    "Qwen 3.5": "Qwen3.5-4B",
    "Seed-OSS": "ByteDance-Seed-OSS",
    "SmolLM 3": "HuggingFaceTB-SmolLM3-3B",
    "gpt-oss": "openai-gpt-oss-120b",
}

BOS, EOS = "<s>", "</s>"

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}
_CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}

SYSTEM = Message("system", "Be brief, and kind.")
ASKED = Message("user", "How is the weather?")
ANSWER = Message("assistant", "Do you mean here?")
CALLED = Message("assistant", "", tool_calls=(_CALL,))
RESULT = Message("tool", "sunny and warm", tool_call_id="a1b2c3d4e", name="weather")
THOUGHT = Message("assistant", "It is sunny.", reasoning="I was told so.")


@functools.cache
def source(family: str) -> str:
    return Path(assets.llama_models() / f"{FAMILIES[family]}.jinja").read_text()
