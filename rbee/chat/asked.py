"""What holds for the next answer: model, node, system message, sampling, reasoning. Changed by /words. Pure.

What the chat does not say is an alias's of the inventory, then the node's, as for `rbee infer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rbee.base.checks import check_text
from rbee.base.errors import UsageError
from rbee.infer.request import InferRequest
from rbee.infer.sampling import OPTIONS, check_stop, check_value
from rbee.inventory.aliases import ModelAlias
from rbee.inventory.schema import nearest
from rbee_remote.protocol import ChatOptions, LoadOptions, Message, Sampling

#: What /set takes.
SETTINGS = (*OPTIONS, "max_tokens", "stop")
#: What takes a setting back.
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Asked:
    """model, node: as of InferRequest. sampling: fields that were said. effort: of reasoning, "" for the template's.
    system: None where the chat says nothing, so that an alias may. load, keep_alive_s: of the command line."""

    model: str | None = None
    node: str | None = None
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    think: bool | None = None
    effort: str = ""
    load: LoadOptions = field(default_factory=LoadOptions)
    keep_alive_s: float | None = None

    def system_message(self, alias: ModelAlias | None) -> str:
        return self.system if self.system is not None else (alias.system if alias else "")

    def request(self, messages: tuple[Message, ...], alias: ModelAlias | None) -> InferRequest:
        """alias: what `model` names, where it is one."""
        load, keep_alive_s = self.load, self.keep_alive_s
        if alias:
            load = load.over(alias.load)
            keep_alive_s = alias.keep_alive_s if keep_alive_s is None else keep_alive_s
        return InferRequest(
            messages=messages,
            node=self.node,
            among=alias.nodes if alias else (),
            model=alias.model if alias else self.model,
            sampling=Sampling(**{**(alias.sampling if alias else {}), **self.sampling}),
            stop=self.stop,
            max_tokens=self.max_tokens,
            chat=ChatOptions(think=self.think, reasoning_effort=self.effort),
            load=load,
            keep_alive_s=keep_alive_s,
            saves_partial=False,
        )

    def with_setting(self, name: str, text: str) -> Asked:
        """As /set has it. Raises UsageError for a name that is none, and for what no worker takes."""
        name = name.replace("-", "_")
        if name not in SETTINGS:
            hint = nearest(name, SETTINGS) or f"there are {', '.join(SETTINGS)}"
            raise UsageError(f"there is no setting {name!r}", hint=hint)
        if not text:
            raise UsageError(f"{name} needs a value", hint=f"/set {name} {_EXAMPLES.get(name, '0.5')}, or {DEFAULT}")
        if text == DEFAULT:
            return self._without(name)
        if name == "stop":
            stop = (*self.stop, text)
            check_stop(name, stop)
            return replace(self, stop=stop)
        if name == "max_tokens":
            tokens = _number(int, name, text)
            if tokens < 1:
                raise UsageError(f"max_tokens: {text} is not 1 or more")
            return replace(self, max_tokens=int(tokens))
        value = _number(OPTIONS[name], name, text)
        check_value(name, name, value)
        return replace(self, sampling={**self.sampling, name: value})

    def thinking(self, word: str) -> Asked:
        """As /think has it: on, off, default, or how much, in a word that the model's template knows."""
        match word.lower():
            case "on":
                return replace(self, think=True)
            case "off":
                return replace(self, think=False, effort="")
            case "default":
                return replace(self, think=None, effort="")
        check_text("/think", word)
        if len(word.split()) != 1:
            raise UsageError("/think takes one word", hint="on, off, low, medium, high, default, show or hide")
        return replace(self, think=None, effort=word)

    @property
    def said(self) -> dict[str, Any]:
        """Settings that were made, by their names, for people."""
        others = {"max_tokens": self.max_tokens, "stop": list(self.stop) or None}
        return {**self.sampling, **{name: value for name, value in others.items() if value is not None}}

    def _without(self, name: str) -> Asked:
        if name == "stop":
            return replace(self, stop=())
        if name == "max_tokens":
            return replace(self, max_tokens=None)
        return replace(self, sampling={key: value for key, value in self.sampling.items() if key != name})


_EXAMPLES = {"top_k": "40", "seed": "1", "max_tokens": "500", "stop": "END", "repeat_penalty": "1.1"}


def _number(kind: Callable[[str], float], name: str, text: str) -> float:
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name}: {text!r} is not {what}", hint=f"/set {name} {DEFAULT} takes it back") from error
