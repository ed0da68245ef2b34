"""What ssh's own files say of a host is read as ssh reads it; what rbee cannot honour is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.inventory import Node
from rbee.transport.ssh.hops import Hop, route

SSH = shutil.which("ssh")

#: Files of both levels; each has to come out as ssh reads it. Paths are filled in by `_write`.
USER = """
Include more/*
Host gpu*
  Port 2201
  IdentityFile ~/.ssh/id_gpu

Match originalhost gpu2 exec "true"
  HostName gpu2.example.org

Match final host *.example.org
  ProxyJump bastion.example.org
  HostKeyAlias gpus

Host plain
  ProxyCommand none
  User ann

Host *
  IdentityFile {home}/.ssh/id_%r_%p
"""
MORE = """
Host included
  HostName %h.example.net
  ProxyCommand nc %h %p
"""
SYSTEM = """
Include conf.d/*.conf
Host gate
  User me
Host !gate *
  User site
  Port 2222
  ProxyJump gate
  SendEnv LANG LC_*
  GSSAPIAuthentication yes
"""
DROP_IN = """
Match final all
  Ciphers aes256-ctr
  ServerAliveInterval 7
Host unix/* vsock/*
  ProxyCommand /usr/lib/systemd/systemd-ssh-proxy %h %p
  ProxyUseFdpass yes
"""


@pytest.fixture
def files(home: Path, tmp_path: Path) -> Path:
    """Writes both levels of configuration; the folder of the system's."""
    (home / ".ssh" / "more").mkdir()
    (home / ".ssh" / "config").write_text(USER.format(home=home))
    (home / ".ssh" / "more" / "config").write_text(MORE)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "20-site.conf").write_text(DROP_IN)
    (tmp_path / "ssh_config").write_text(SYSTEM)
    return tmp_path


def _last(host: str, **settings: object) -> Hop:
    return route(Node("node", host=host, **settings), {})[-1]  # type: ignore[arg-type]


def test_the_users_file_comes_first_and_the_systems_file_fills_in(files: Path, home: Path) -> None:
    hops = route(Node("node", host="gpu1"), {})
    assert [(hop.host, hop.port, hop.user) for hop in hops] == [("gate", 22, "me"), ("gpu1", 2201, "site")]
    assert hops[1].identities == (home / ".ssh" / "id_gpu", home / ".ssh" / "id_site_2201")


def test_match_final_sees_the_name_that_was_found(files: Path) -> None:
    hops = route(Node("node", host="gpu2"), {})
    assert [hop.host for hop in hops] == ["gate", "gpu2.example.org"], "what the first pass found stays"
    assert hops[-1].host_key_alias == "gpus"


def test_tokens_are_expanded_when_all_is_read(files: Path) -> None:
    hop = _last("included")
    assert (hop.host, hop.proxy_command) == ("included.example.net", "nc included.example.net 2222")


def test_the_first_of_proxy_jump_and_proxy_command_counts(files: Path) -> None:
    (hop,) = route(Node("node", host="plain"), {})
    assert (hop.user, hop.proxy_command) == ("ann", None)


def test_what_the_inventory_says_wins(files: Path) -> None:
    hop = _last("gpu1", user="bee", port=22)
    assert (hop.user, hop.port) == ("bee", 22)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("CanonicalizeHostname yes\nCanonicalDomains example.org\n", "CanonicalizeHostname"),
        ("CanonicalizeHostname always\nCanonicalDomains example.org\nProxyCommand nc %h %p\n", "CanonicalizeHostname"),
        ("ProxyUseFdpass yes\nProxyCommand nc -F %h %p\n", "ProxyUseFdpass"),
        ("BindInterface eth7\n", "BindInterface"),
        ("RevokedHostKeys /etc/ssh/revoked\n", "RevokedHostKeys"),
        ("Port 70000\n", "port"),
    ],
)
def test_what_would_lead_elsewhere_and_is_not_honoured_is_refused(text: str, option: str, home: Path) -> None:
    (home / ".ssh" / "config").write_text(text)
    with pytest.raises(ConfigError, match=option) as caught:
        _last("gpu1")
    assert "ssh -G gpu1" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("gpu1.example.org", "CanonicalizeHostname yes\nCanonicalDomains example.org\nCanonicalizeMaxDots 1\n"),
        ("192.0.2.1", "CanonicalizeHostname yes\nCanonicalDomains example.org\n"),
        ("gpu1", "CanonicalizeHostname yes\n"),
        ("gpu1", "CanonicalizeHostname yes\nCanonicalDomains example.org\nProxyCommand nc %h %p\n"),
        ("gpu1", "ProxyUseFdpass no\nBindInterface none\n"),
    ],
)
def test_what_changes_nothing_for_this_host_is_no_obstacle(host: str, text: str, home: Path) -> None:
    (home / ".ssh" / "config").write_text(text)
    assert _last(host).host == host


@pytest.mark.parametrize("text", ["Match nonsense x\n", "Port many\n", "Host 'open\n", "Host *\n  IdentityFile %X\n"])
def test_a_file_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text(text)
    with pytest.raises(ConfigError, match="SSH configuration"):
        _last("gpu1")


@pytest.mark.skipif(SSH is None, reason="OpenSSH's client is not installed")
@pytest.mark.parametrize("host", ["gpu1", "gpu2", "plain", "included", "elsewhere"])
def test_ssh_itself_reads_the_same(host: str, files: Path, home: Path) -> None:
    """ssh takes the home from the system's list of users, so both levels go to it as one file."""
    both = files / "both"
    text = (home / ".ssh" / "config").read_text().replace("Include more/*", MORE)
    both.write_text(text + SYSTEM.replace("Include conf.d/*.conf", DROP_IN))
    said = subprocess.run(["ssh", "-G", "-F", str(both), host], capture_output=True, text=True, check=True).stdout
    options = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    hops = route(Node("node", host=host), {})
    assert (hops[-1].host, hops[-1].port, hops[-1].user) == (
        options["hostname"],
        int(options["port"]),
        options["user"],
    )
    assert bool(hops[-1].proxy_command) is (options.get("proxycommand", "none") != "none")
    assert [hop.host for hop in hops[:-1]] == [jump for jump in [options.get("proxyjump")] if jump]


#: Each with something that is easily read otherwise; of all of them `ssh -G` tells the same as we do.
CORNERS = {
    "equals signs": "Host=gpu1\nPort=2201\nUser = ann\n",
    "quotes": 'Host "gpu1" b\n  IdentityFile "/keys/my key"\n  User "ann"\n',
    "tabs and capitals": "\tHOST\tgpu1\n\t\tpORT\t2201  \n",
    "comments at the end": "Host gpu1 # the one\n  Port 2201 # odd\nHost one\n  User no\n",
    "no comments": 'User "#ann"\nHostKeyAlias a#b\n',
    "carriage returns": "Host gpu1\r\n  Port 2201\r\n",
    "capitals in a name": "HostName GPU1.Example.ORG\n",
    "negation": "Host gpu* !gpu1\n  Port 9\nHost gpu?\n  Port 2201\n",
    "match with lists": "Match host gpu2,gpu1 !user bob\n  Port 2201\n",
    "match on what was found": "Host gpu1\n HostName b\n User ann\nMatch originalhost gpu1 host b user ann\n Port 9\n",
    "exec with an equals sign": 'Match exec "test a = a"\n  Port 2201\n',
    "exec with tokens": 'HostName b.%h\nPort 2200\nMatch exec "test %h%p%n = b.gpu12200gpu1"\n  User ann\n',
    "exec that fails": 'Match host gpu1 exec "test %h = other"\n  Port 2201\n',
    "the first value counts": "Port 2201\nPort 2202\nUserKnownHostsFile /a /b\nUserKnownHostsFile /c\n",
    "tokens in known_hosts": "UserKnownHostsFile /hosts/%h-%p\n",
    "several keys": "IdentitiesOnly yes\nIdentityFile /keys/a\nIdentityFile /keys/b\n",
    "a percent sign": "HostName %h.%%x\nHostKeyAlias foo\n",
    "addresses": "AddressFamily inet6\nBindAddress ::1\n",
    "a proxy with quotes": "ProxyCommand = nc -x 'a b' \"c # d\" host 1\n",
    "an unknown option": "IgnoreUnknown Foo*\nFooBar yes\nPort 2201\n",
}


@pytest.mark.skipif(SSH is None, reason="OpenSSH's client is not installed")
@pytest.mark.parametrize("what", CORNERS)
def test_ssh_itself_reads_each_corner_the_same(what: str, home: Path) -> None:
    config = home / ".ssh" / "config"
    config.write_bytes(CORNERS[what].encode())
    said = subprocess.run(["ssh", "-G", "-F", str(config), "gpu1"], capture_output=True, text=True, check=True).stdout
    options: dict[str, list[str]] = {}
    for line in said.splitlines():
        key, _, value = line.partition(" ")
        options.setdefault(key, []).append(value)
    hop = _last("gpu1")
    assert (hop.host, hop.port, hop.user) == (options["hostname"][0], int(options["port"][0]), options["user"][0])
    assert [hop.host_key_alias] == options.get("hostkeyalias", [None])
    assert [hop.proxy_command] == options.get("proxycommand", [None])
    assert [hop.bind_address] == options.get("bindaddress", [None])
    assert hop.identities_only is (options["identitiesonly"] == ["yes"])
    if "IdentityFile" in CORNERS[what]:
        assert list(map(str, hop.identities)) == options["identityfile"]
    if "UserKnownHostsFile" in CORNERS[what]:
        assert list(map(str, hop.known_hosts))[:-2] == options["userknownhostsfile"][0].split()


def test_no_key_can_be_named(home: Path) -> None:
    (home / ".ssh" / "config").write_text("IdentityFile none\n")
    assert _last("gpu1").identities == ()


@pytest.mark.parametrize(("name", "mode"), [("config", 0o646), ("config", 0o602), ("more/config", 0o666)])
def test_a_file_that_others_can_write_is_refused_as_ssh_does(files: Path, home: Path, name: str, mode: int) -> None:
    path = home / ".ssh" / name
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{path} is not used: it can be written by everybody") as caught:
        _last("plain")
    assert caught.value.hint == f"chmod go-w {path}"


def test_a_fifo_in_place_of_a_file_is_waited_for_by_nobody(files: Path, home: Path) -> None:
    path = home / ".ssh" / "config"
    path.unlink()
    os.mkfifo(path)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="written by everybody"):
        _last("plain")


def test_of_the_systems_files_those_that_are_included_are_looked_at(files: Path) -> None:
    """As in ssh: nobody but the administrator names the system's own file."""
    (files / "ssh_config").chmod(0o666)
    _last("plain")
    (files / "conf.d" / "20-site.conf").chmod(0o666)
    with pytest.raises(ConfigError, match=r"20-site\.conf is not used"):
        _last("plain")
