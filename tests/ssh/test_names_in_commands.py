"""An inventory is data: no name in it runs a command through the user's own ssh configuration (CVE-2023-51385)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError, RbeeError
from rbee.inventory import Node, parse
from rbee.transport.ssh.hops import route
from tests.ssh.conftest import Connect

#: What the configuration of many a user says, and where it puts names.
CONFIGS = {
    "host": "Host *\n  ProxyCommand nc -w1 %h %p\n",
    "alias": "Host *\n  HostName 127.0.0.1\n  ProxyCommand echo %n\n",
    "user": "Host *\n  ProxyCommand ssh -W %h:%p %r@127.0.0.1 -p 1\n",
    "match": 'Match exec "test %h = y"\n  User me\n',
    "match user": 'Match exec "test %r = y"\n  Port 22\n',
    "put together": "Host *\n  HostName %h.example\n  ProxyCommand echo %h\n",
}
POISON = ("x`id>{0}`", "x$(id>{0})", "x;id>{0};", "x|id>{0}|", "x&id>{0}&", "'x;id>{0};'", "x\nid>{0}\n", 'x";id>{0};"')


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("key", ["host", "user", "jump", "jump's user"])
async def test_no_name_runs_a_command(
    connect: Connect, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, key: str
) -> None:
    """The values come past the inventory's own check, as from another caller."""
    (home / ".ssh" / "config").write_text(CONFIGS[config])
    monkeypatch.chdir(tmp_path)
    for poison in POISON:
        name = poison.format("ran")
        node = {
            "host": Node("a", host=name),
            "user": Node("a", host="127.0.0.1", port=1, user=name),
            "jump": Node("a", host="127.0.0.1", port=1, jump=(name,)),
            "jump's user": Node("a", host="127.0.0.1", port=1, jump=(f"{name}@127.0.0.1:1",)),
        }[key]
        with pytest.raises(RbeeError) as caught:
            async with connect(node):
                pass
        assert not (tmp_path / "ran").exists()
        assert isinstance(caught.value, ConfigError)
        assert "id>" not in caught.value.hint


@pytest.mark.parametrize("option", ["HostName", "User", "ProxyJump"])
def test_names_of_sshs_files_are_looked_at_when_they_are_put_together(home: Path, option: str) -> None:
    (home / ".ssh" / "config").write_text(f"Host a\n  {option} x`id`\n  ProxyCommand nc %h %r\n")
    with pytest.raises(ConfigError, match=r"is not a (host|login) name"):
        route(Node("a", host="a"), {})


@pytest.mark.parametrize("key", ["host", "user", "jump", "jump's user"])
def test_the_inventory_refuses_such_names(key: str) -> None:
    for poison in (*POISON, "-x", "a*", "[-]x", "a?", "a$b"):
        name = json.dumps(poison.format("/tmp/ran"))
        line = {
            "host": f"host = {name}",
            "user": f"user = {name}",
            "jump": f"jump = [{name}]",
            "jump's user": f'jump = [{name[:-1]}@door"]',
        }[key]
        with pytest.raises(ConfigError) as caught:
            parse(f"[nodes.a]\n{line}\n".encode(), Path("/etc/inventory.toml"))
        assert caught.value.details["key"] == key.partition("'")[0]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *(
            ("host", name)
            for name in ("gpu1", "10.0.0.1", "2001:db8::1", "fe80::1%eth0", "a_b.c-d", "unix/run", "bücher")
        ),
        *(("user", name) for name in ("bee", "DOM\\bee", "host$", "bee@example.org", "a.b-c_d", "a%b")),
        *(("jump", name) for name in ("door", "me@door:22", "ssh://me@door:22/", "me@[2001:db8::1]:22", "a@b@door")),
    ],
)
def test_names_that_people_have_are_taken(key: str, name: str) -> None:
    value = f"['{name}']" if key == "jump" else f"'{name}'"
    node = parse(f"[nodes.a]\n{key} = {value}\n".encode(), Path("/etc/inventory.toml")).node("a")
    assert getattr(node, key) in (name, (name,))
    assert route(node, {})[-1].name == "a"
