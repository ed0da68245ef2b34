"""Whether a model can serve what it is wanted for: told before it is fetched wherever its ref tells, and before it is
loaded in any case. Pure."""

from __future__ import annotations

from rbee.base.errors import UsageError
from rbee.models.ref import built_in
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.abilities import ADAPTER, ADAPTER_HINT, abilities, pooled, refusal

_OTHER_MODEL = "name a model that chats (rbee models list), or ask this one over HTTP (rbee serve)"


def known_abilities(canonical: str) -> tuple[str, ...]:
    """What a model can be asked for, as far as its ref alone tells; none where its file has to say."""
    model = built_in().get(canonical)
    return model.able if model else ()


def said_abilities(canonical: str, load: LoadOptions) -> tuple[str, ...]:
    """The same where somebody may have said how the model pools."""
    if load.pooling in (None, "auto"):
        return known_abilities(canonical)
    return abilities("", pooled("", load.pooling))


def check_able(model: str, able: tuple[str, ...], ability: str) -> None:
    """able: none while unknown. ability: what the model is wanted for, one of the words of `abilities`, "" for whatever
    it can. Raises UsageError."""
    if why := refusal(model, able, ability) if ability else "":
        hint = ADAPTER_HINT if ADAPTER in able else _OTHER_MODEL
        raise UsageError(why, hint=hint, details={"able": list(able)})
