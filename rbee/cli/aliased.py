"""`--model NAME` where NAME is an alias: what the command line does not say, the inventory's `[models.NAME]` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rbee.base.errors import NodeError, RbeeError
from rbee.cli.chat_options import Chat
from rbee_remote.protocol import ErrorCode, LoadOptions

if TYPE_CHECKING:
    from rbee.inventory import Inventory
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


def alias_of(model: str | None, inventory: Inventory) -> ModelAlias | None:
    """The alias of this name, if it is one. Raises as `parse_ref` for what is no model either, near an alias or not."""
    from difflib import get_close_matches

    from rbee.models.ref import parse_ref

    alias = inventory.alias(model)
    if model and alias is None:
        try:
            parse_ref(model)
        except RbeeError as error:
            if near := get_close_matches(model, inventory.models, n=1):
                what = f"{model!r} is neither an alias in the inventory nor a model"
                raise NodeError(ErrorCode.MODEL_NOT_FOUND, what, hint=f"did you mean {near[0]}?") from error
            raise
    return alias
