"""Which dialect a chat template is of."""

from __future__ import annotations

from rbee_remote.worker.dialects.hermes import Hermes
from rbee_remote.worker.dialects.interface import Dialect
from rbee_remote.worker.dialects.plain import Plain
from rbee_remote.worker.dialects.think import Think

#: The first that recognises a template is its dialect: what is more special stands before what is more general.
DIALECTS: tuple[Dialect, ...] = (
    Hermes(Think()),
    Hermes(),
    Plain(Think()),
    Plain(),
)

#: For tools that are described in the system turn, because the template knows nothing of any.
GENERIC: Dialect = Plain(Think())


def dialect_of(template: str | None) -> Dialect:
    """None: the model has no template, so ChatML is taken."""
    return next(dialect for dialect in DIALECTS if dialect.recognises(template or ""))
