"""`rbee nodes`: the inventory from the command line, and whether its nodes answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.durations import format_duration
from rbee.base.errors import UsageError
from rbee.cli.failed_nodes import error_value, partial_failure, why
from rbee.cli.options import NodeArgument, NodesArgument
from rbee.cli.shell import Shell, command, group
from rbee.render import Table
from rbee.render.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.fleet.nodes import Ping
    from rbee.inventory import Node
    from rbee.node.diagnosis import Finding
    from rbee.node.session import PerNode


_ADDRESS = re.compile(
    r"(?:(?P<user>[^@]+)@)?(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^\[\]:@]+|[0-9A-Fa-f:.%]*:[^\[\]]*:[^\[\]]*))(?::(?P<port>[0-9]+))?"
)

_MD5 = re.compile(r"(?:MD5:)?(?:[0-9A-Fa-f]{2}:){15}[0-9A-Fa-f]{2}|MD5:.*", re.IGNORECASE)


def register(app: typer.Typer) -> None:
    nodes = group(app, "nodes", "The machines in the inventory.")
    command(nodes, "add", example="rbee nodes add gpu1 vince@192.0.2.11 --tag cuda")(add)
    command(nodes, "list", example="rbee nodes list --json")(list_)
    command(nodes, "show", example="rbee nodes show gpu1")(show)
    command(nodes, "remove", example="rbee nodes remove gpu1")(remove)
    command(nodes, "ping", example="rbee nodes ping @cuda", over_link=True)(ping)
    command(nodes, "check", example="rbee nodes check gpu1")(check)


def add(
    shell: Shell,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the node.")],
    address: Annotated[
        str,
        typer.Argument(
            metavar="[USER@]HOST[:PORT]", help="The address of the node; an alias from ~/.ssh/config works."
        ),
    ],
    identity: Annotated[
        Path | None, typer.Option("--identity", metavar="FILE", help="The private key to log in with.")
    ] = None,
    jump: Annotated[
        list[str] | None,
        typer.Option("--jump", "-J", metavar="NODE", help="Go through this node or host; may be repeated, in order."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag, for --node @TAG; may be repeated.")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="auto, cpu, cuda, metal, rocm or vulkan.")
    ] = "auto",
    home: Annotated[
        str | None,
        typer.Option(
            "--home", metavar="PATH", help="rbee's folder on the node. [default: ~/.rbee/node]", show_default=False
        ),
    ] = None,
    host_key: Annotated[
        str | None,
        typer.Option(
            "--host-key", metavar="SHA256:…", help="The fingerprint of the node's host key; no other key is accepted."
        ),
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Add it without connecting.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Accept the host key that the node shows, without comparing it.")
    ] = False,
) -> None:
    """Add a machine to the inventory, and pin its host key."""
    from rbee import audit
    from rbee.inventory.edit import add_node

    path = shell.writable_inventory()
    node = make_node(
        name, address, identity=identity, jump=jump, tags=tag, backend=backend, home=home, host_key=host_key
    )
    context = shell.context
    if node.name in context.inventory.nodes:
        raise UsageError(
            f"node {name!r} exists already", hint=f"choose another name, or `rbee nodes remove {name}` first"
        )
    with audit.recorded(shell.settings, "nodes.add", emit=shell.renderer, node=name) as details:
        accepted: dict[str, str | None] = {}
        if not no_check:
            from rbee.fleet import nodes

            added = shell.run(nodes.add(context, node, assume_yes=yes))
            node = added.node
            accepted = {"algorithm": added.key.algorithm if added.key else None, "accepted_by": added.accepted_by.value}
        add_node(path, node)
        details |= {"address": node_address(node), "host_key": node.host_key, **accepted}
    key = f", host key {node.host_key}" if node.host_key else ""
    data = {"added": node_data(node), "inventory": str(path), "host_key": {"fingerprint": node.host_key, **accepted}}
    shell.renderer.done(f"added {name} to {path}{key}", data)


def list_(shell: Shell, nodes: NodesArgument = None) -> None:
    """List the nodes of the inventory."""
    shell.renderer.table(nodes_table(shell.inventory.select(nodes)))


def show(shell: Shell, node: NodeArgument) -> None:
    """Show all that the inventory says of one node, defaults included."""
    shell.renderer.record(node_data(shell.inventory.node(node)))


def remove(shell: Shell, node: NodeArgument) -> None:
    """Remove a node from the inventory. What is on the machine stays there; see `rbee uninstall`."""
    from rbee import audit
    from rbee.inventory.edit import remove_node

    path = shell.writable_inventory()
    with audit.recorded(shell.settings, "nodes.remove", emit=shell.renderer, node=node):
        remove_node(path, node)
        with shell.open_registry() as registry:
            registry.forget_node(node)
    shell.renderer.done(f"removed {node} from {path}", {"removed": node, "inventory": str(path)})


def ping(shell: Shell, nodes: NodesArgument = None) -> None:
    """Connect to all nodes at once, and show how long it took."""
    from rbee.fleet import nodes as use_cases

    context = shell.context
    answers = shell.run(use_cases.ping(context, context.inventory.select(nodes)))
    shell.renderer.table(pings_table(answers))
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure


def check(shell: Shell, node: NodeArgument) -> None:
    """Check a node, and say how to fix what is wrong; exit code 5 where no model could run."""
    from rbee.fleet import nodes
    from rbee.node.diagnosis import obstacle

    context = shell.context
    findings = shell.run(nodes.check(context, context.inventory.node(node)))
    shell.renderer.table(findings_table(findings))
    if error := obstacle(node, findings):
        raise error


def make_node(
    name: str,
    address: str,
    *,
    identity: Path | None = None,
    jump: list[str] | None = None,
    tags: list[str] | None = None,
    backend: str = "auto",
    home: str | None = None,
    host_key: str | None = None,
) -> Node:
    """A node from the words of a command line, checked as the inventory's are. Raises UsageError."""
    from rbee.inventory import LOCAL, Node
    from rbee.inventory.schema import ALL, KEYS, check_name

    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UsageError(
            f"{address!r} is not of the form [USER@]HOST[:PORT]",
            hint="an IPv6 address with a port goes in brackets: [2001:db8::1]:22",
        )
    if name in (ALL, LOCAL):
        raise UsageError(f"{name!r} is reserved and cannot be a node's name")

    def checked(what: str, check: Callable[[Any], Any], value: Any) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise UsageError(f"{what}: {error}") from error

    given: dict[str, Any] = {
        "host": match["v6"] or match["host"],
        "user": match["user"],
        "port": int(match["port"]) if match["port"] else None,
        "jump": jump or None,
        "tags": tags or None,
        "backend": backend,
        "home": home,
        "identity_file": str(identity) if identity else None,
    }
    fields = {KEYS[key][0]: checked(key, KEYS[key][1], value) for key, value in given.items() if value is not None}
    if "identity_file" in fields:
        fields["identity_file"] = fields["identity_file"].absolute()
        if not fields["identity_file"].is_file():
            raise UsageError(f"there is no key file {fields['identity_file']}")
    if host_key is not None:
        _refuse_md5(host_key)
        fields["host_key"] = checked("--host-key", KEYS["host_key"][1], host_key)
    return Node(name=checked("NAME", check_name, name), **fields)


def _refuse_md5(fingerprint: str) -> None:
    """Raises UsageError."""
    if _MD5.fullmatch(fingerprint):
        raise UsageError(
            f"--host-key: {fingerprint!r} is an MD5 fingerprint, which can be forged",
            hint="`ssh-keygen -E sha256 -lf FILE` prints the SHA-256 fingerprint, which rbee takes",
        )


def node_data(node: Node) -> dict[str, Any]:
    """Every key of the inventory, as JSON values."""
    return {
        "name": node.name,
        "host": node.host,
        "port": node.port,
        "user": node.user,
        "identity_file": str(node.identity_file) if node.identity_file else None,
        "host_key": node.host_key,
        "jump": list(node.jump),
        "tags": sorted(node.tags),
        "backend": node.backend,
        "builds_from": list(node.builds_from),
        "wheel_indexes": [
            {"backend": index.backend, "url": index.name, "sha256": list(index.sha256), "key": index.key or None}
            for index in node.wheel_indexes
        ],
        "wheel_index": node.wheel_index,
        "home": node.home,
        "hub_token": node.hub_token,
        "model": node.model,
        "template": str(node.template) if node.template else None,
        "keep_alive": format_duration(node.keep_alive_s),
        "max_workers": node.max_workers,
        **node.load.plain(),
        "sandbox": node.sandbox,
        "env": node.env,
    }


def node_address(node: Node) -> str:
    """[USER@]HOST[:PORT], or what stands for this machine."""
    if node.host is None:
        return "this machine"
    host = f"[{node.host}]" if ":" in node.host and node.port else node.host
    return f"{node.user + '@' if node.user else ''}{host}{f':{node.port}' if node.port else ''}"


def nodes_table(nodes: Sequence[Node]) -> Table:
    rows = [
        (node.name, node_address(node), " ".join(sorted(node.tags)) or "-", node.backend, node.model or "-")
        for node in nodes
    ]
    return Table(("NAME", "ADDRESS", "TAGS", "BACKEND", "MODEL"), rows, [node_data(node) for node in nodes])


def pings_table(answers: Sequence[PerNode[Ping]]) -> Table:
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        ping = answer.value
        times = (ping.connect_s, ping.authenticate_s, ping.rtt_s) if ping else (None, None, None)
        rows.append((answer.node.name, "ok" if ping else "FAILED", *map(milliseconds, times), why(answer.error)))
        seconds = dict(zip(("connect_s", "authenticate_s", "rtt_s"), times, strict=True))
        data.append({"node": answer.node.name, "ok": ping is not None, **seconds, **error_value(answer.error)})
    return Table(("NODE", "PING", "CONNECT", "AUTHENTICATE", "ROUND TRIP", "WHY"), rows, data)


def findings_table(findings: Sequence[Finding]) -> Table:
    rows = [(str(f.level).upper(), f.title, one_line(f.detail), one_line(f.fix)) for f in findings]
    data = [{"level": str(f.level), "title": f.title, "detail": f.detail, "fix": f.fix} for f in findings]
    return Table(("LEVEL", "WHAT", "FOUND", "FIX"), rows, data)


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
