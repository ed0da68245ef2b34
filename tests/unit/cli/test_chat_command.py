"""What `rbee chat` makes of its surroundings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rbee.cli.chat import telling_once
from rbee.inventory import LOCAL, Node
from rbee.registry import Registry
from tests.doubles import chat_worker


def test_what_is_wrong_with_the_registry_is_told_once_and_by_the_chat(tmp_path: Path) -> None:
    """Each turn opens it anew; written past the chat's screen it would stand in the middle of an answer."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    plain = chat_worker.context_of(home, Node(LOCAL))
    Registry.open(plain.settings.registry_path).close()
    told: list[str] = []

    def open_registry(tell: Callable[[str], None]) -> Registry:
        tell("it cannot be written")
        return Registry.open(plain.settings.registry_path, tell=tell)

    context = telling_once(plain, open_registry, told.append)
    for _ in range(3):
        with context.open_registry() as registry:
            assert registry.rows() == []
    assert told == ["it cannot be written"]
