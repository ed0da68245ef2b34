"""The chat template that an inventory names: where it is looked for, and what is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.inventory import Node, parse
from rbee.inventory.edit import toml_keys
from rbee.inventory.template import read_template
from rbee_remote.protocol.limits import MAX_TEMPLATE


def node_with(template: Path) -> Node:
    return Node("gpu1", host="h", template=template)


def test_it_lies_in_the_inventorys_folder_and_defaults_apply(tmp_path: Path) -> None:
    text = b'[defaults]\ntemplate = "chat.jinja"\n[nodes.gpu1]\n[nodes.gpu2]\ntemplate = "/t/other.j2"\n'
    nodes = parse(text, tmp_path / "i.toml").nodes
    assert {name: node.template for name, node in nodes.items()} == {
        "gpu1": tmp_path / "chat.jinja",
        "gpu2": Path("/t/other.j2"),
        "local": tmp_path / "chat.jinja",
    }
    assert toml_keys(nodes["gpu2"])["template"] == "/t/other.j2"


@pytest.mark.parametrize("value", ['"~/.ssh/id_ed25519"', '"chat.txt"', '".jinja"', "5", '""'])
def test_another_file_is_refused_when_the_inventory_is_read(value: str) -> None:
    with pytest.raises(ConfigError, match=r"\[nodes.gpu1\] template: "):
        parse(f"[nodes.gpu1]\ntemplate = {value}\n".encode(), Path("i.toml"))


def test_a_link_does_not_lead_to_another_file(tmp_path: Path) -> None:
    """An inventory comes with a folder, and what is read goes to the node."""
    (tmp_path / "id_ed25519").write_text("secret")
    (tmp_path / "chat.jinja").symlink_to("id_ed25519")
    with pytest.raises(ConfigError, match=r"the template of gpu1: .*id_ed25519' is not a chat template"):
        read_template(node_with(tmp_path / "chat.jinja"))


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }} é", encoding="utf-8")
    assert read_template(node_with(path)) == "{{ messages }} é"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the file cannot be read: No such file or directory"),
        (b" \n", "the file is empty"),
        (b"\xff", "the file is not UTF-8 text"),
        (b"x" * (MAX_TEMPLATE + 1), "the file has more than 1048576 characters"),
    ],
)
def test_what_is_no_template_names_node_file_and_key(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"the template of gpu1: {message}") as caught:
        read_template(node_with(path))
    assert caught.value.details == {"file": str(path), "key": "template"}
    assert caught.value.exit_status == 2


def test_a_loop_of_links_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").symlink_to("b.jinja")
    (tmp_path / "b.jinja").symlink_to("a.jinja")
    with pytest.raises(ConfigError, match="the template of gpu1"):
        read_template(node_with(tmp_path / "a.jinja"))
