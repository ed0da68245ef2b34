"""`rbee nodes add` and known_hosts agree: what is pinned is what was compared, known, or knowingly taken unseen."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import RefusedError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.fleet import nodes
from rbee.fleet.nodes import AcceptedBy, Added
from rbee.inventory import Inventory, Node
from rbee.transport.ssh import scan_host_key
from rbee_remote.protocol import ErrorCode
from tests.ssh.conftest import Connect
from tests.ssh.servers import Server, asyncssh_server
from tests.ssh.test_host_keys import remember

Ask = Callable[[str], Awaitable[bool]]
KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256")
_SSH = shutil.which("ssh")


async def never(question: str) -> bool:
    raise AssertionError(f"nobody was to be asked: {question}")


def keys() -> list[asyncssh.SSHKey]:
    return [asyncssh.generate_private_key(kind) for kind in KINDS]


async def add(
    node: Node, *others: Node, home: Path, events: list[Event] | None = None, yes: bool = False, ask: Ask | None = never
) -> Added:
    inventory = Inventory({each.name: each for each in others})
    said: list[Event] = [] if events is None else events
    context = Context(Settings(home=home / "rbee"), inventory, lambda: None, "0" * 16, ask, emit=said.append)  # type: ignore[arg-type, return-value]
    return await nodes.add(context, node, assume_yes=yes)


async def refused(node: Node, *others: Node, home: Path, yes: bool = False, ask: Ask | None = never) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await add(node, *others, home=home, yes=yes, ask=ask)
    assert caught.value.exit_status == 4
    return caught.value


def at(server: Server) -> str:
    return f"[{server.host}]:{server.port}"


def said(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


# --- known_hosts has something to say -------------------------------------------------------------------------------


@pytest.mark.parametrize("yes", [False, True])
async def test_a_key_other_than_the_known_one_is_refused(
    user_key: asyncssh.SSHKey, identity: Path, home: Path, yes: bool
) -> None:
    known = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh_server([user_key]) as server:
        remember(home, at(server), known)
        error = await refused(server.node(identity, host_key=None), home=home, yes=yes)
        assert server.logins == []
        # Neither does an option that names it: two that know the machine say two things.
        by_option = await refused(server.node(identity), home=home)
    assert error.code is by_option.code is ErrorCode.HOST_KEY_MISMATCH
    assert (error.details["expected"], error.details["got"]) == (known.get_fingerprint(), server.host_keys[0])
    assert f"ssh-keygen -R '{at(server)}'" in error.hint


@pytest.mark.parametrize("marked_for", ["*", "it", "its name"])
async def test_a_revoked_key_is_refused_whoever_vouches_for_it(
    user_key: asyncssh.SSHKey, identity: Path, home: Path, marked_for: str
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh_server([user_key], host_keys=[key]) as server:
        pattern = {"*": "*", "it": at(server), "its name": server.host}[marked_for]
        remember(home, pattern, key, "@revoked ")
        for pin in (None, server.host_keys[0]):
            error = await refused(server.node(identity, host_key=pin), home=home, yes=True)
            assert error.code is ErrorCode.HOST_KEY_MISMATCH
            assert "revoked" in error.message
        assert server.logins == []


async def test_a_known_key_needs_no_question(user_key: asyncssh.SSHKey, identity: Path, home: Path) -> None:
    """Also where it is of a type that the server would not have shown first."""
    pair = keys()
    async with asyncssh_server([user_key], host_keys=pair) as server:
        remember(home, at(server), pair[1])
        events: list[Event] = []
        added = await add(server.node(identity, host_key=None), home=home, events=events)
    assert (added.node.host_key, added.accepted_by) == (server.host_keys[1], AcceptedBy.KNOWN_HOSTS)
    assert f"{server.host_keys[1]} ({KINDS[1]}), as known_hosts has it" in said(events)


async def test_a_known_authority_decides_and_no_key_is_pinned(
    user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    authority, key, others = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
    certificate = authority.generate_host_certificate(key, "gpu1", principals=["127.0.0.1"])
    stranger = others.generate_host_certificate(key, "gpu1", principals=["127.0.0.1"])
    async with asyncssh_server([user_key], host_keys=[key], certificates=[certificate]) as server:
        remember(home, at(server), authority, "@cert-authority ")
        added = await add(server.node(identity, host_key=None), home=home)
    assert (added.node.host_key, added.key, added.accepted_by) == (None, None, AcceptedBy.KNOWN_HOSTS)
    for shown in ([], [stranger]):
        async with asyncssh_server([user_key], host_keys=[key], certificates=shown) as server:
            remember(home, at(server), authority, "@cert-authority ")
            error = await refused(server.node(identity, host_key=None), home=home, yes=True)
            assert error.code is ErrorCode.HOST_KEY_MISMATCH
            assert error.details["expected"] == authority.get_fingerprint()
            assert server.logins == []


@pytest.mark.skipif(_SSH is None, reason="needs OpenSSH's client")
@pytest.mark.parametrize("marker", ["", "@revoked ", "@cert-authority "])
@pytest.mark.parametrize("lines", ["it is known", "it is known on port 22", "its authority is", "another authority is"])
async def test_the_plain_name_means_to_rbee_what_it_means_to_ssh(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path, marker: str, lines: str
) -> None:
    """A server behind another port that shows a certificate. What is said of it, and of its name with `marker`."""
    authority, other, key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(3))
    certificate = authority.generate_host_certificate(key, "gpu1", principals=["127.0.0.1"])
    shown = [certificate] if "authority" in lines else []
    async with asyncssh_server([user_key], host_keys=[key], certificates=shown) as server:
        if lines.startswith("it is known"):
            remember(home, server.host if "22" in lines else at(server), key)
            remember(home, server.host, key if marker == "@revoked " else other, marker)
        else:
            known = authority if lines.startswith("its") else other
            remember(home, server.host, known, "@cert-authority ")
            remember(home, server.host, {"@revoked ": authority}.get(marker, other), marker)
        ssh, rbee = await _goes_in(connect, server, identity, home)
    # Stricter than ssh: a key that its owner revoked is not taken for the sake of an older line.
    assert rbee == (ssh and not (marker == "@revoked " and lines == "it is known"))


async def _goes_in(connect: Connect, server: Server, identity: Path, home: Path) -> tuple[bool, bool]:
    """Whether OpenSSH, told to ask nobody, and rbee, without a question, connect."""
    files = ("-F", "none", "-o", f"UserKnownHostsFile={home}/.ssh/known_hosts", "-o", "GlobalKnownHostsFile=none")
    words = (*files, "-o", "BatchMode=yes", "-i", str(identity), "-p", str(server.port), "bee@127.0.0.1", "true")
    ssh = await asyncio.create_subprocess_exec(str(_SSH), *words, stderr=asyncio.subprocess.DEVNULL)
    expected = await ssh.wait() == 0
    node = server.node(identity, host_key=None)
    try:
        scanned = await scan_host_key(node, {}, emit=lambda event: None)
        async with connect(node):
            pass
    except RefusedError:
        return expected, False
    assert scanned.known
    return expected, True


@pytest.mark.skipif(_SSH is None, reason="needs OpenSSH's client")
@pytest.mark.parametrize("marker", ["", "@revoked ", "@cert-authority "])
@pytest.mark.parametrize("whose", ["its first", "its second", "another's"])
@pytest.mark.parametrize("pattern", ["[127.0.0.1]:PORT", "127.0.0.1", "[127.0.0.1]:1", "*", "[127.0.0.*]:PORT,!x"])
async def test_known_hosts_means_to_rbee_what_it_means_to_ssh(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path, marker: str, whose: str, pattern: str
) -> None:
    """OpenSSH itself, told to ask nobody, connects exactly where rbee does, and where no question is needed."""
    pair = keys()
    known = {"its first": pair[0], "its second": pair[1]}.get(whose, asyncssh.generate_private_key(KINDS[1]))
    async with asyncssh_server([user_key], host_keys=pair) as server:
        remember(home, pattern.replace("PORT", str(server.port)), known, marker)
        ssh, rbee = await _goes_in(connect, server, identity, home)
    assert rbee == ssh


# --- the user has ---------------------------------------------------------------------------------------------------


async def test_the_option_pins_what_was_compared_whatever_type_it_is(
    user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    async with asyncssh_server([user_key], host_keys=keys()) as server:
        for fingerprint in server.host_keys:
            node = server.node(identity, host_key=fingerprint)
            added = await add(node, home=home, ask=None)
            assert (added.node.host_key, added.accepted_by) == (fingerprint, AcceptedBy.OPTION)


@pytest.mark.parametrize("yes", [False, True])
async def test_another_key_than_the_one_compared_is_refused(
    user_key: asyncssh.SSHKey, identity: Path, home: Path, yes: bool
) -> None:
    compared = asyncssh.generate_private_key("ssh-ed25519").get_fingerprint()
    async with asyncssh_server([user_key], host_keys=keys()) as server:
        error = await refused(server.node(identity, host_key=compared), home=home, yes=yes, ask=None)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert (error.details["expected"], error.details["got"]) == (compared, server.host_keys[0])
    assert server.logins == []


async def test_the_hint_pins_the_key_that_was_shown(user_key: asyncssh.SSHKey, identity: Path, home: Path) -> None:
    async with asyncssh_server([user_key]) as server:
        node = server.node(identity, host_key=None)
        error = await refused(node, home=home, ask=None)
        assert error.code is ErrorCode.HOST_KEY_UNKNOWN
        assert error.hint.endswith(f"rbee nodes add … --host-key {server.host_keys[0]}")
        assert "--yes" not in error.hint
        # Who follows it while somebody else answers in the machine's place does not pin that one.
        server.show(asyncssh.generate_private_key("ssh-ed25519"))
        error = await refused(replace(node, host_key=server.host_keys[0]), home=home, ask=None)
        assert error.code is ErrorCode.HOST_KEY_MISMATCH


async def test_the_connection_is_checked_against_the_key_that_was_accepted(
    user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    async with asyncssh_server([user_key]) as server:

        async def swapped(question: str) -> bool:
            server.show(asyncssh.generate_private_key("ssh-ed25519"))
            return "Is this the key" in question

        error = await refused(server.node(identity, host_key=None), home=home, ask=swapped)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert error.details["expected"] == server.host_keys[0]
    assert server.logins == []


async def test_yes_says_what_it_took_and_that_nobody_compared_it(
    user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    events: list[Event] = []
    async with asyncssh_server([user_key]) as server:
        added = await add(server.node(identity, host_key=None), home=home, events=events, yes=True)
    assert (added.node.host_key, added.accepted_by) == (server.host_keys[0], AcceptedBy.NOBODY)
    assert f"--yes accepts {server.host_keys[0]} (ssh-ed25519) for gpu1: nobody compared it" in said(events)


# --- the way there --------------------------------------------------------------------------------------------------


async def test_a_jump_host_is_held_against_known_hosts_too(
    user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh_server([user_key], host_keys=[key]) as door, asyncssh_server([user_key]) as inner:
        node = inner.node(identity, host_key=None, jump=("door",))
        remember(home, at(door), key, "@revoked ")
        pinned = await refused(node, door.node(identity, name="door"), home=home, yes=True)
        (home / ".ssh" / "known_hosts").unlink()
        remember(home, at(door), asyncssh.generate_private_key("ssh-ed25519"))
        changed = await refused(node, door.node(identity, name="door", host_key=None), home=home, yes=True)
        assert door.logins == inner.logins == []
    assert pinned.code is changed.code is ErrorCode.HOST_KEY_MISMATCH
    assert ("revoked" in pinned.message, "known_hosts says" in changed.message) == (True, True)


async def test_the_hint_for_an_unknown_jump_host_pins_the_key_that_was_shown(
    user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    async with asyncssh_server([user_key]) as door, asyncssh_server([user_key]) as inner:
        node = inner.node(identity, host_key=None, jump=(f"bee@127.0.0.1:{door.port}",))
        error = await refused(node, home=home, yes=True)
    assert error.code is ErrorCode.HOST_KEY_UNKNOWN
    assert error.hint.endswith(
        f"ssh -p {door.port} bee@127.0.0.1 true, with {door.host_keys[0]} as the answer to its question"
    )
