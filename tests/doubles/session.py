"""A `NodeSession` over a connection that a test has open already."""

from __future__ import annotations

from typing import Any

from rbee.context import Context
from rbee.inventory import Node
from rbee.node.session import NodeSession
from rbee.transport.connection import Connection


def session_over(connection: Connection, node: Node, context: Context, attached: Any = None) -> NodeSession:
    """A session without a registry. attached: in the shape of an `Attached`, as far as the test needs it."""
    session = NodeSession(context, None, node)  # type: ignore[arg-type]
    session.connection = connection  # type: ignore[assignment]
    session._attached = attached
    return session
