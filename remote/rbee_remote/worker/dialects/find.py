"""Which dialect a chat template is of."""

from __future__ import annotations

from rbee_remote.worker.dialects.command_r import CommandR
from rbee_remote.worker.dialects.deepseek import DeepSeek, DeepSeekBrief
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.glm import Glm
from rbee_remote.worker.dialects.granite import Granite
from rbee_remote.worker.dialects.harmony import Harmony
from rbee_remote.worker.dialects.hermes import Hermes
from rbee_remote.worker.dialects.interface import Dialect
from rbee_remote.worker.dialects.invoke import Invoke, InvokeBars, InvokeBars4
from rbee_remote.worker.dialects.kimi import Kimi
from rbee_remote.worker.dialects.lfm2 import Lfm2
from rbee_remote.worker.dialects.listed import Functools, Listed, ListedLower
from rbee_remote.worker.dialects.llama import Llama, LlamaPythonic
from rbee_remote.worker.dialects.mistral import Mistral, MistralNamed, MistralNumbered
from rbee_remote.worker.dialects.plain import Plain
from rbee_remote.worker.dialects.qwen_xml import QwenXml, SeedXml
from rbee_remote.worker.dialects.smollm import SmolLm
from rbee_remote.worker.dialects.think import Think

_TAGS = Think()
_BRACKETS = Think("[THINK]", "[/THINK]")
_COHERE = Think("<|START_THINKING|>", "<|END_THINKING|>")

_SEED = Think("<seed:think>", "</seed:think>")
_FAMILIES: tuple[type[Family], ...] = (
    *(DeepSeek, DeepSeekBrief, Kimi, Glm, QwenXml, Invoke, InvokeBars, InvokeBars4, Lfm2, Granite, Listed, ListedLower),
    Functools,
    *(SmolLm, Hermes, LlamaPythonic, Llama, Plain),
)

#: The first that recognises a template is its dialect: what is more special stands before what is more general.
DIALECTS: tuple[Dialect, ...] = (
    Harmony(),
    CommandR(_COHERE),
    CommandR(),
    *(family(think) for family in (MistralNumbered, MistralNamed, Mistral) for think in (_BRACKETS, _TAGS, None)),
    SeedXml(_SEED),
    *(family(think) for family in _FAMILIES for think in (_TAGS, None)),
)

#: For tools that are described in the system turn, because the template knows nothing of any.
GENERIC: Dialect = Plain(_TAGS)


def dialect_of(template: str | None) -> Dialect:
    """None: the model has no template, so ChatML is taken."""
    return next(dialect for dialect in DIALECTS if dialect.recognises(template or ""))
