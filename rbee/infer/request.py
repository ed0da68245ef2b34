"""What `rbee infer` was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from rbee_remote.protocol import ChatOptions, LoadOptions, Message, Sampling, ToolOptions
from rbee_remote.protocol.abilities import CHAT


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One prompt, and how to answer it.

    node: a name, "@tag", "all", or None for wherever the model is or fits, of those in `among`, which has names and
    "@tag"s, none for all. model: a model ref, None for the node's default. Either messages, or prompt (--raw: no chat
    template). max_tokens: None for what the context still holds.
    chat: how the messages become a prompt; without a template of its own it is the node's. tools: what may be called.
    load: how the model is loaded; what it does not say is the node's.
    keep_alive_s: None for the node's, negative for never. timeout_s: seconds for everything, None for none.
    needs: what the model has to be able to do where nothing is asked of it here, "" for whatever.
    retry: how often a busy worker is asked again. wait_for_gpu: for a llama.cpp that the node's GPU needs and that
    is not built yet, in place of an answer from its CPU. saves_partial: whether an answer that breaks off is kept in a
    file; not where the asker keeps what came, or nothing may be kept.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    node: str | None = None
    among: tuple[str, ...] = ()
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    tools: ToolOptions = field(default_factory=ToolOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    keep_alive_s: float | None = None
    timeout_s: float | None = None
    retry: int = 3
    wait_for_gpu: bool = False
    needs: str = ""
    saves_partial: bool = True

    @property
    def ability(self) -> str:
        """What the model is wanted for, one of the words of `abilities`; "" for a worker of any."""
        return CHAT if self.messages or self.prompt is not None else self.needs
