"""How many tokens of each text a step takes, where a model only embeds or ranks. Pure.

Two ways, by what the model needs:
- `whole`: its tokens see each other in both directions, so a text is computed in one step, and others beside it.
- `last`: what is wanted is the state after the last token. What stands before it is computed as prompts are, without
  outputs, each of which would be as wide as the vocabulary; then the last tokens of all in a step of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens of a step of whole texts, unless the first one has more. Each token of a step is compared with all the others,
#: also with those of other texts, so that more would cost more than it saves.
TEXT_STEP = 512


def whole(missing: Sequence[int]) -> list[int]:
    """missing: tokens of each text, the eldest first, of which the first always fits. All of a text, or nothing: as
    many as fit, in their order, so that none is overtaken again and again."""
    budget = max(TEXT_STEP, missing[0]) if missing else 0
    shares = []
    for tokens in missing:
        if tokens > budget:
            break
        budget -= tokens
        shares.append(tokens)
    return shares + [0] * (len(missing) - len(shares))


def last(missing: Sequence[int], budget: int) -> list[int]:
    """missing: tokens of each text that are not computed, at least one. One of each of those that lack the last alone;
    where there is none, what stands before it, the eldest first."""
    if 1 in missing:
        return [1 if tokens == 1 else 0 for tokens in missing]
    shares = []
    for tokens in missing:
        share = min(tokens - 1, budget)
        budget -= share
        shares.append(share)
    return shares
