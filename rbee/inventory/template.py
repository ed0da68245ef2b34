"""The chat template that the inventory names for a node."""

from __future__ import annotations

import os

from rbee.base.errors import ConfigError
from rbee.inventory import Node
from rbee.inventory.schema import check_template
from rbee_remote.protocol.limits import MAX_TEMPLATE


def read_template(node: Node) -> str:
    """The text of the node's `template`, which it has. Raises ConfigError that names node and file."""
    assert node.template is not None
    try:
        check_template(
            os.path.realpath(node.template)
        )  # a link may lead anywhere, and the file's text goes to the node
        text = node.template.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise ValueError("the file is empty")
        if len(text) > MAX_TEMPLATE:
            raise ValueError(f"the file has more than {MAX_TEMPLATE} characters")
    except UnicodeDecodeError as error:
        raise _wrong(node, f"the file is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise _wrong(node, f"the file cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _wrong(node, str(error)) from error
    return text


def _wrong(node: Node, what: str) -> ConfigError:
    return ConfigError(
        f"the template of {node.name}: {what}",
        hint="mend `template` in the inventory; --template FILE takes another for one answer",
        details={"file": str(node.template), "key": "template"},
    )
