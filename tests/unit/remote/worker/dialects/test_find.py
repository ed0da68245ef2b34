"""Which dialect a template is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee_remote.worker.dialects.find import DIALECTS, GENERIC, dialect_of
from rbee_remote.worker.dialects.interface import Tools
from tests.dialect_cases import Call, read
from tests.testbed import assets

#: Of llama.cpp's own templates: what each is written in, and what ends its reasoning.
TEMPLATES = {
    "ByteDance-Seed-OSS": ("qwen_xml", "</seed:think>"),
    "Cohere2MoE": ("command_r", "<|END_THINKING|>"),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ("command_r", "<|END_THINKING|>"),
    "GLM-4.6": ("glm", "</think>"),
    "GLM-4.7-Flash": ("glm", "</think>"),
    "HuggingFaceTB-SmolLM3-3B": ("plain", "</think>"),
    "Kimi-K2-Instruct": ("kimi", ""),
    "Kimi-K2-Thinking": ("kimi", "</think>"),
    "LFM2-8B-A1B": ("lfm2", ""),
    "LFM2.5-8B-A1B": ("lfm2", "</think>"),
    "LFM2.5-Instruct": ("lfm2", "</think>"),
    "MiniMax-M1": ("listed", ""),
    "MiniMax-M2": ("invoke", "</think>"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral", ""),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen_xml", "</think>"),
    "NVIDIA-Nemotron-Nano-v2": ("listed", "</think>"),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": ("hermes", ""),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", ""),
    "Qwen-QwQ-32B": ("hermes", "</think>"),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", ""),
    "Qwen-Qwen3-0.6B": ("hermes", "</think>"),
    "Qwen3-Coder": ("qwen_xml", ""),
    "Qwen3.5-4B": ("qwen_xml", "</think>"),
    "StepFun3.5-Flash": ("qwen_xml", "</think>"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("deepseek", "</think>"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("deepseek", "</think>"),
    "deepseek-ai-DeepSeek-V3.1": ("deepseek", "</think>"),
    "deepseek-ai-DeepSeek-V3.2": ("invoke", "</think>"),
    "deepseek-ai-DeepSeek-V4": ("invoke", "</think>"),
    "google-gemma-2-2b-it": ("plain", ""),
    "fireworks-ai-llama-3-firefunction-v2": ("listed", ""),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", "</think>"),
    "ibm-granite-granite-4.0": ("hermes", ""),
    "llama-cpp-deepseek-r1": ("deepseek", "</think>"),
    "meetkai-functionary-medium-v3.1": ("llama", ""),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama", ""),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama", ""),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama", ""),
    "microsoft-Phi-3.5-mini-instruct": ("plain", ""),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "[/THINK]"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral", ""),
    "moonshotai-Kimi-K2": ("kimi", ""),
    "openai-gpt-oss-120b": ("harmony", "<|end|>"),
    "unsloth-Apriel-1.5": ("listed", ""),
    "unsloth-mistral-Devstral-Small-2507": ("mistral", ""),
}
ROOT = Path(__file__).resolve().parents[5]


def test_no_template_is_plain() -> None:
    dialect = dialect_of(None)
    assert (dialect.name, dialect.reasoning_end) == ("plain", "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_finds_its_dialect(name: str) -> None:
    dialect = dialect_of((assets.llama_models() / f"{name}.jinja").read_text())
    assert (dialect.name, dialect.reasoning_end) == TEMPLATES[name]


def test_described_tools_are_called_in_hermes_form() -> None:
    text = '<think>so</think><tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert read(GENERIC, text)[-1] == Call("add", '{"a": 1}')


def test_without_a_tool_a_grammar_is_for_text() -> None:
    for each in DIALECTS:
        assert "add" not in each.grammar(Tools(), None, {}, "")


def test_the_docs_name_every_dialect() -> None:
    page = (ROOT / "docs/explanation/dialects.md").read_text()
    rows = [line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(dict.fromkeys(dialect.name for dialect in DIALECTS))
