"""`rbee infer` through login shells, rc files and sshd settings as they are found on machines that nobody prepared.

One container: each way in is a login of its own with the uid of bee, so that all of them share bee's runtime and hive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.testbed.cli import Rbee, Result
from tests.testbed.node import ContainerNode, start_node, until_sshd_answers

pytestmark = [pytest.mark.container, pytest.mark.model]

NODE_HOME = "/home/bee/.rbee/node"
#: A folder of tools that must not be ours: each says so and fails.
TOOLS = "awk cat cd chmod cut date dd df echo find grep id kill mkdir mv printf ps read rm sed stat tail test tr uname"


@dataclass(frozen=True)
class Login:
    """A way in. rc: the file in its home that its shell reads first, and what stands there. sshd: a Match block.

    home: whether it has one.
    """

    shell: str = "bash"
    rc: tuple[str, str] = ("", "")
    sshd: tuple[str, ...] = ()
    home: bool = True

    @property
    def script(self) -> str:
        """Makes `$name`, as root."""
        if not self.home:
            return f"useradd -o -u $(id -u bee) -g bee -M $name\n{self._match}"
        return (
            f"home=/home/$name; useradd -o -u $(id -u bee) -g bee -m -s $(command -v {self.shell}) $name\n"
            f"cp -a /home/bee/.ssh $home/\n{self._rc}{self._match}"
        )

    @property
    def _rc(self) -> str:
        file, text = self.rc
        if not file:
            return ""
        return f"mkdir -p $(dirname $home/{file}); cat >$home/{file} <<'END_OF_RC'\n{text}\nEND_OF_RC\n"

    @property
    def _match(self) -> str:
        lines = "".join(f"  {line}\\n" for line in self.sshd)
        return f"printf 'Match User %s\\n{lines}' $name >>/etc/ssh/sshd_config\n" if lines else ""


WORKING = {
    # The first one starts the hive, with all that its rc file has done.
    "odd-settings": Login(
        rc=(
            ".bashrc",
            "set -e; export SHELLOPTS CDPATH=/usr:/etc IFS=r BASH_ENV=/nowhere ENV=/nowhere TMPDIR=/nowhere\n"
            "export LC_ALL=xx_XX.ISO-8859-15 LANG=zz PYTHONHOME=/nowhere PYTHONPATH=/nowhere XDG_RUNTIME_DIR=/proc\n"
            "cd /usr; umask 0777; unset HOME USER SHELL",
        )
    ),
    "exports-functions": Login(
        rc=(".bashrc", f'for tool in {TOOLS}; do eval "$tool() {{ return 1; }}"; done; export -f {TOOLS}')
    ),
    "dash": Login("dash", (".profile", "echo never read")),
    "zsh": Login("zsh", (".zshenv", "print -P '%F{red}Hello from zsh'; alias sed=false; cd /")),
    "fish": Login("fish", (".config/fish/config.fish", "echo Hello from fish; function cat; false; end; cd /usr")),
    "tcsh": Login("tcsh", (".tcshrc", "echo Hello from tcsh; alias printf false; cd /tmp")),
    "prints-and-sleeps": Login(
        rc=(".bashrc", "head -c 1000000 /dev/urandom; yes 'on stderr' | head -n 5000 >&2; sleep 1")
    ),
    "asks": Login(rc=(".bashrc", "read -r one; read -r two; printf 'Press a key %s' \"$one$two\"")),
    "execs-zsh": Login(rc=(".bashrc", '[ -n "$ZSH_VERSION" ] || exec zsh')),
    "homeless": Login(sshd=("AuthorizedKeysFile /home/bee/.ssh/authorized_keys",), home=False),
    "one-session": Login(sshd=("MaxSessions 1", "Banner /etc/ssh/banner")),
    "one-session-pipes": Login(sshd=("MaxSessions 1", "DisableForwarding yes", "ClientAliveInterval 1")),
}
REFUSED = {
    "nologin": (Login("nologin"), 5, "login shell", "not available"),
    "forced": (Login(sshd=("ForceCommand echo Backups only",)), 5, "ForceCommand", "Backups only"),
    "sftp": (Login(sshd=("ForceCommand internal-sftp",)), 5, "ForceCommand", ""),
    "no-session": (Login(sshd=("MaxSessions 0",)), 5, "MaxSessions", ""),
    "prints-for-ever": (Login(rc=(".bashrc", "exec yes")), 5, ".bashrc", ""),
}


@pytest.fixture(scope="module")
def node(key: Any, bootstrapped_image: str) -> Iterator[ContainerNode]:
    """A node with all the logins, where /bin/sh is bash, which takes over more from its environment than dash does."""
    container, node = start_node(key, image=bootstrapped_image)
    try:
        logins = WORKING | {name: login for name, (login, *_) in REFUSED.items()}
        node.exec("".join(f"name={name}\n{login.script}" for name, login in logins.items()))
        node.exec(
            "ln -sf bash /bin/sh; head -c 200000 /dev/zero | tr '\\0' '\\377' | fold -w 70 >/etc/ssh/banner\n"
            "echo 'Message of the day' >/etc/motd; kill -HUP $(pgrep -o -x sshd)"
        )
        until_sshd_answers(node.host, node.port)
        yield node
    finally:
        container.stop()


@pytest.fixture(scope="module")
def keeper(node: ContainerNode, shared_rbee: Rbee) -> Rbee:
    """Its inventory has a node for each login."""
    tables = [
        node.inventory(user=f'"{name}"', home=f'"{NODE_HOME}"').replace("[nodes.gpu1]", f"[nodes.{name}]")
        for name in (*WORKING, *REFUSED)
    ]
    shared_rbee.inventory.write_text("\n".join(tables))
    return shared_rbee


@pytest.mark.parametrize("login", WORKING)
def test_a_hard_login_gets_an_answer(login: str, keeper: Rbee) -> None:
    result = keeper("infer", "--node", login, "--max-tokens", "8", "--temperature", "0", "Name the capital of France.")
    assert "Paris" in result.stdout


@pytest.mark.parametrize("login", REFUSED)
def test_a_login_that_cannot_work_is_refused_with_its_reason(login: str, keeper: Rbee) -> None:
    _, status, hint, said = REFUSED[login]
    error = _failure(keeper("infer", "--json", "--node", login, "Hello", status=status))
    assert hint in error["hint"]
    assert said in str(error["details"].get("said", ""))


def test_a_login_without_a_home_is_told_to_name_one(keeper: Rbee, node: ContainerNode) -> None:
    keeper.inventory.write_text(node.inventory(user='"homeless"'))
    error = _failure(keeper("infer", "--json", "--node", "gpu1", "Hello", status=5))
    assert "/home/homeless/.rbee/node" in str(error)
    assert "`home`" in error["hint"]


@pytest.mark.parametrize(
    ("squat", "problem"),
    [
        ("mkdir -m 755 $own; chown bee-zsh $own", "belongs to somebody else"),
        ("mkdir -m 777 $own; chown bee-dash $own", "can be changed by others"),
        ("mkdir /tmp/elsewhere; chown bee-dash /tmp/elsewhere; ln -s /tmp/elsewhere $own", "is a symbolic link"),
        ("touch $own; chown bee-dash $own", "is no folder"),
    ],
)
def test_a_squatted_folder_for_sockets_is_refused(squat: str, problem: str, keeper: Rbee, node: ContainerNode) -> None:
    keeper.inventory.write_text(node.inventory(user='"bee-dash"'))
    node.exec(f"own=/tmp/rbee-$(id -u bee-dash); {squat}")
    try:
        error = _failure(keeper("infer", "--json", "--node", "gpu1", "Hello", status=5))
        findings, ended = (
            json.loads(line) for line in keeper("nodes", "check", "gpu1", "--json", status=5).stdout.splitlines()
        )
    finally:
        node.exec("rm -rf /tmp/rbee-$(id -u bee-dash) /tmp/elsewhere")
    assert problem in error["message"]
    assert "ls -ld /tmp/rbee-" in error["hint"]
    assert [finding["level"] for finding in findings if problem in finding["detail"]] == ["fail"]
    assert "sockets" in ended["error"]["message"]
    assert node.files("/home/bee-dash/.rbee") == [], "nothing was put there"


class TestKillUserProcesses:
    """systemd-logind as far as the node's commands can tell: its configuration, and what it does at a logout."""

    @pytest.fixture
    def logind(self, keeper: Rbee, node: ContainerNode) -> Iterator[ContainerNode]:
        keeper.inventory.write_text(node.inventory())
        node.exec(
            "mkdir -p /run/systemd/system /etc/systemd /var/lib/systemd/linger\n"
            "printf '[Login]\\nKillUserProcesses=yes\\n' >/etc/systemd/logind.conf"
        )
        logout(node)
        yield node
        node.exec("rm -rf /run/systemd/system /etc/systemd/logind.conf /var/lib/systemd/linger/*")

    def test_it_is_found_and_explained_when_workers_end_with_the_session(
        self, keeper: Rbee, logind: ContainerNode
    ) -> None:
        findings = keeper("nodes", "check", "gpu1", "--json").json()
        (finding,) = [each for each in findings if each["title"] == "KillUserProcesses"]
        assert finding["level"] == "warn"
        assert "loginctl enable-linger bee" in finding["fix"]
        for _ in range(2):  # the second time a worker is known that has ended with the first session
            result = keeper("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
            assert result.stdout.strip()
            assert "loginctl enable-linger bee" in result.stderr
            logout(logind)

    def test_a_user_who_lingers_gets_a_scope_that_outlives_sessions(self, keeper: Rbee, logind: ContainerNode) -> None:
        logind.exec(
            "touch /var/lib/systemd/linger/bee\n"
            "printf '%s\\n' '#!/bin/sh' 'shift 3; echo \"$@\" >>/tmp/scoped; exec \"$@\"' >/usr/local/bin/systemd-run\n"
            "chmod 755 /usr/local/bin/systemd-run"
        )
        try:
            result = keeper("infer", "--node", "gpu1", "--max-tokens", "1", "Hello")
            assert " hive " in logind.exec("cat /tmp/scoped")
        finally:
            logind.exec("rm /usr/local/bin/systemd-run")
        assert "enable-linger" not in result.stderr


def logout(node: ContainerNode) -> None:
    """What logind does with what a session has started."""
    node.end_all()


def _failure(result: Result) -> Any:
    return result.lines()[-1]["error"]
