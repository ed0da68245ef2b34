"""Passphrases that were typed once, for connections that are made anew or beside the first."""

from __future__ import annotations

from rbee.transport.connection import AskPassphrase


class Passphrases:
    """What the user typed. ask: None where nobody can be asked."""

    def __init__(self, ask: AskPassphrase | None) -> None:
        self._ask = ask
        self._known: dict[str, str] = {}

    def asking(self) -> AskPassphrase | None:
        """For one opening: what was typed before is tried once, then the user is asked."""
        ask, tried = self._ask, set[str]()
        if ask is None:
            return None

        async def answer(prompt: str) -> str:
            if prompt in tried or prompt not in self._known:
                self._known[prompt] = await ask(prompt)
            tried.add(prompt)
            return self._known[prompt]

        return answer
