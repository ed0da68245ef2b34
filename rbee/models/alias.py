"""Which alias of the inventory a user means, or nearly does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.base.errors import NodeError, RbeeError
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.inventory import Inventory
    from rbee.inventory.aliases import ModelAlias


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
