"""What a chat template made of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text, ending where the answer begins.

    seam: a character that stands in `text`, and nowhere in the request, where two pieces have to be tokenized apart, so
    that what somebody wrote does not become a control token; "" where there is none. warnings: what of the request
    cannot be honoured as asked, a line each. tools_described: the template knows nothing of tools, so the system's turn
    describes them and how to call one. stops: texts that end the answer, where the vocabulary has no token for them.
    """

    text: str
    seam: str = ""
    warnings: tuple[str, ...] = ()
    tools_described: bool = False
    stops: tuple[str, ...] = ()
