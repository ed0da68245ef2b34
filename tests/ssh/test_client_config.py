"""What ssh's own files say of a host is read as ssh reads it; what rbee cannot honour is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rbee.errors import ConfigError
from rbee.inventory import Node
from rbee.ssh.config import Hop, route

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
