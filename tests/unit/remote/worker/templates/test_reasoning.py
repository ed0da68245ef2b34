"""Words for how much a model reasons, by the template that they are for."""

from __future__ import annotations

import pytest

from rbee_remote.worker.templates.reasoning import Traits, Wish
from tests.testbed import assets


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("openai-gpt-oss-120b", "minimal", "low"),
        ("openai-gpt-oss-120b", "medium", "medium"),
        ("openai-gpt-oss-120b", "xhigh", "high"),
        ("openai-gpt-oss-120b", "max", "high"),
        ("openai-gpt-oss-120b", "whatever", "whatever"),
        ("deepseek-ai-DeepSeek-V4", "max", "max"),
        ("deepseek-ai-DeepSeek-V4", "xhigh", "high"),
        ("Kimi-K3", "xhigh", "high"),
        ("Kimi-K3", "max", "max"),
        ("Kimi-K3", "medium", "high"),
        ("tencent-Hy3", "medium", "high"),
        ("tencent-Hy3", "minimal", "low"),
        ("upstage-Solar-Open-100B", "minimal", "minimal"),
    ],
)
def test_an_effort_is_the_nearest_that_the_template_knows(name: str, given: str, told: str) -> None:
    traits = Traits.of((assets.llama_models() / f"{name}.jinja").read_text())
    read = frozenset({"reasoning_effort"})
    assert Wish.of(None, given, {}).variables(traits, read) == {"reasoning_effort": told}
