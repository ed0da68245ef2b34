"""A `NodeSession` over a connection that a test has open already."""

from __future__ import annotations

from rbee.context import Context
from rbee.inventory import Node
from rbee.node.session import Attached, NodeSession
from rbee.transport.connection import Connection


def session_over(connection: Connection, node: Node, context: Context, attached: object = None) -> NodeSession:
    """A session without a registry. attached: in the shape of an `Attached`, as far as the test needs it."""
    session = NodeSession(context, None, node)  # type: ignore[arg-type]
    session.connection = connection  # type: ignore[assignment]
    if attached is not None:
        _attach(session, attached)  # type: ignore[arg-type]
    return session


def _attach(session: NodeSession, attached: Attached) -> None:
    session._attached = attached
