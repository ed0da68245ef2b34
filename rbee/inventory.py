"""The inventory: which nodes there are. TOML in, frozen values out; edits keep comments and order.

Rules
- A value that leaves this module is valid; nobody checks it again.
- Every key of a node can stand in `[defaults]`; `_merge` is the one place where defaults apply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that runs models.

    host None: this machine, without SSH. port and user None: what ~/.ssh/config says, else 22 and the own name.
    host_key: "SHA256:…", None where known_hosts decides. home: None for ~/.rbee/node, else absolute or ~-relative, on
    the node. keep_alive_s: seconds, negative for never. ctx: tokens per slot.
    """

    name: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    identity_file: Path | None = None
    host_key: str | None = None
    jump: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    backend: str = "auto"
    home: str | None = None
    model: str | None = None
    keep_alive_s: float = 300.0
    max_workers: int | None = None
    slots: int = 1
    ctx: int | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return self.host is None
