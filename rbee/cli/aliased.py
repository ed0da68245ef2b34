"""`--model NAME` where NAME is an alias: what the command line does not say, the inventory's `[models.NAME]` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rbee.cli.chat_options import Chat
from rbee.models.alias import alias_of as alias_of
from rbee_remote.protocol import LoadOptions

if TYPE_CHECKING:
    from rbee.inventory.aliases import ModelAlias


@dataclass(frozen=True, slots=True)
class Asked:
    """What was said of a model and how it is to answer. among: as in InferRequest. sampling: fields that were said."""

    model: str | None
    chat: Chat
    sampling: dict[str, Any]
    load: LoadOptions
    keep_alive_s: float | None
    among: tuple[str, ...] = ()

    def over(self, alias: ModelAlias | None) -> Asked:
        """This, and what the alias says where this says nothing. Its fallbacks are the gateway's."""
        if alias is None:
            return self
        is_silent = self.chat.system is None and not self.chat.raw
        return Asked(
            model=alias.model,
            chat=replace(self.chat, system=alias.system) if alias.system and is_silent else self.chat,
            sampling={**alias.sampling, **self.sampling},
            load=self.load.over(alias.load),
            keep_alive_s=alias.keep_alive_s if self.keep_alive_s is None else self.keep_alive_s,
            among=alias.nodes,
        )
