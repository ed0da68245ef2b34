"""The table of retries in docs/reliability.md, computed from the constants of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from rbee.base import retries as keeper
from rbee.node.hive_client import STOP_STEPS
from rbee_remote.protocol import StopRequest
from rbee_remote.protocol import retries as node

ROOT = Path(__file__).parents[3]
DOC = ROOT / "docs/reliability.md"
MIB = 2**20


class Policy(NamedTuple):
    """owner: the file with the loop, which names the constants. worst_s: None where size or progress decide."""

    what: str
    owner: str
    tries: str
    pause: str
    one_try: str
    worst_s: float | None
    constants: tuple[str, ...]
    without_end: bool = False


def number(seconds: float) -> str:
    return f"{round(seconds, 2):,.10g}"


def listed(seconds: tuple[float, ...]) -> str:
    return ", ".join(map(number, seconds))


def ssh_s(number: int = 1) -> float:
    """From this try on, where plain failures and a server that hangs up on newcomers may take turns."""
    tried = keeper.SSH_CONNECT_S + keeper.SSH_AUTHENTICATE_S
    plain = tried
    if number <= len(keeper.SSH_DELAYS_S):
        plain += keeper.SSH_DELAYS_S[number - 1] + ssh_s(number + 1)
    busy = keeper.SSH_CONNECT_S
    if number <= len(keeper.SSH_BUSY_DELAYS_S):
        busy += max(keeper.SSH_BUSY_SPREAD) * keeper.SSH_BUSY_DELAYS_S[number - 1] + ssh_s(number + 1)
    return max(plain, busy)


def upload_s(size: int) -> float:
    pieces = -(-size // MIB)
    once = keeper.UPLOAD_READY_S + pieces * keeper.UPLOAD_PIECE_S
    return keeper.UPLOAD_TRIES * (once + keeper.UPLOAD_CHECK_S + size / keeper.UPLOAD_CHECK_RATE)


#: One source without a byte, where the server asks each time to come back later.
DOWNLOAD_TRY_S = node.HUB_API_S + node.DOWNLOAD_CONNECT_S + node.DOWNLOAD_STALL_S
DOWNLOAD_S = node.DOWNLOAD_TRIES * DOWNLOAD_TRY_S + (node.DOWNLOAD_TRIES - 1) * node.DOWNLOAD_LONGEST_DELAY_S

#: The stream to the worker, its greeting, the head and the first event of an answer; then the hive is asked.
ANSWER_TRY_S = keeper.STREAM_OPEN_S + 3 * keeper.ANSWER_SILENCE_S + keeper.ASK_TIMEOUT_S
#: One try in which it is found out, and another that began at the last moment.
OUTAGE_S = 2 * ANSWER_TRY_S + keeper.OUTAGE_S + keeper.OUTAGE_LONGEST_PAUSE_S
BUSY_S = sum(keeper.BUSY_DELAYS_S)
INFERENCE_S = (len(keeper.BUSY_DELAYS_S) + 1) * OUTAGE_S + BUSY_S + keeper.NOTICED_S

#: Where this machine first asks its index.
LIBRARIES_S = keeper.LIBRARIES_FIND_S + keeper.LIBRARIES_ANSWER_S + keeper.LIBRARIES_WHOLE_S

RUNTIME_SCRIPTS = 3  # made, removed, made again
STOP_S = keeper.REQUEST_S + keeper.STOP_TIMEOUT_S + STOP_STEPS * StopRequest().patience_s
#: Each step of phases 2 to 7 that has a limit, once; a bootstrap probes twice.
PHASES_S = (
    2 * keeper.PROBE_S
    + (keeper.PYTHON_TIMEOUT_S + 10)
    + LIBRARIES_S
    + RUNTIME_SCRIPTS * keeper.INSTALL_TIMEOUT_S
    + keeper.HEALTH_TIMEOUT_S
    + STOP_S
    + keeper.HIVE_START_S
    + 3 * keeper.REQUEST_S  # the catalog, whether it fits, the worker
    + DOWNLOAD_S
    + keeper.REGISTER_S
    + keeper.STALLED_LOAD_S
    + 2 * keeper.BUSY_TIMEOUT_S
)
REPEATED_S = (keeper.RECONNECTS + 1) * PHASES_S + keeper.RECONNECTS * keeper.REOPEN_TIMEOUT_S
WARM_S = 2 * keeper.BUSY_TIMEOUT_S + ssh_s() + INFERENCE_S
COLD_S = WARM_S + PHASES_S
#: After a known worker turned out to be gone. One that dies of the request leaves a try less.
COLD_AGAIN_S = WARM_S + keeper.WORKERS_TRIED * (REPEATED_S + INFERENCE_S)

#: Each silent worker is followed by one that is waited for as long as may be.
FAILOVER_S = keeper.FAILOVER_IN_A_ROW * keeper.ANSWER_SILENCE_S + (keeper.FAILOVER_IN_A_ROW - 1) * (
    keeper.FAILOVER_BACK_S + 2 * keeper.FAILOVER_RESUME_S
)

POLICIES = (
    Policy(
        "a hop cannot be connected to",
        "rbee/transport/ssh/__init__.py",
        f"{len(keeper.SSH_DELAYS_S) + 1}",
        listed(keeper.SSH_DELAYS_S),
        f"{number(keeper.SSH_CONNECT_S)} + {number(keeper.SSH_AUTHENTICATE_S)} for each key",
        (len(keeper.SSH_DELAYS_S) + 1) * (keeper.SSH_CONNECT_S + keeper.SSH_AUTHENTICATE_S) + sum(keeper.SSH_DELAYS_S),
        ("SSH_DELAYS_S",),
    ),
    Policy(
        "its server hangs up on newcomers; in turns with the above",
        "rbee/transport/ssh/__init__.py",
        f"{len(keeper.SSH_BUSY_DELAYS_S) + 1}",
        f"{listed(keeper.SSH_BUSY_DELAYS_S)}, each times {' to '.join(map(number, keeper.SSH_BUSY_SPREAD))}",
        "the same",
        ssh_s(),
        ("SSH_BUSY_DELAYS_S", "SSH_BUSY_SPREAD"),
    ),
    Policy(
        "a socket here takes no connections",
        "rbee/transport/local.py",
        f"begun within {number(keeper.LOCAL_QUEUE_S)} s",
        number(keeper.LOCAL_QUEUE_PAUSE_S),
        "",
        keeper.LOCAL_QUEUE_S,
        ("LOCAL_QUEUE_S", "LOCAL_QUEUE_PAUSE_S"),
    ),
    Policy(
        "workers.db is locked",
        "rbee/registry/file.py",
        "SQLite's",
        "",
        "",
        keeper.BUSY_TIMEOUT_S,
        ("BUSY_TIMEOUT_S",),
    ),
    Policy(
        "the part of an upload turns out corrupt (for a file of 1 MiB)",
        "rbee/transport/upload.py",
        f"{keeper.UPLOAD_TRIES}",
        "",
        f"{number(keeper.UPLOAD_READY_S)} + {number(keeper.UPLOAD_PIECE_S)} for each MiB + "
        f"{number(keeper.UPLOAD_CHECK_S)} + 1 for each {keeper.UPLOAD_CHECK_RATE // MIB} MiB",
        upload_s(MIB),
        ("UPLOAD_TRIES", "UPLOAD_READY_S", "UPLOAD_PIECE_S", "UPLOAD_CHECK_S"),
    ),
    Policy(
        "a runtime cannot be made: once more, with everything sent anew",
        "rbee/setup/bootstrap.py",
        "2",
        "",
        number(keeper.INSTALL_TIMEOUT_S),
        RUNTIME_SCRIPTS * keeper.INSTALL_TIMEOUT_S,
        ("INSTALL_TIMEOUT_S",),
    ),
    Policy(
        "a node's own download of CUDA's libraries breaks, without 1 MiB more; then they are uploaded",
        "rbee/setup/own_way.py",
        f"{keeper.LIBRARIES_TRIES}; 1 where no server answers, or one stalls",
        f"{number(keeper.LIBRARIES_PAUSE_S)} doubled",
        f"{number(keeper.LIBRARIES_ANSWER_S)} for the first answer, then {number(keeper.LIBRARIES_STALL_S)} idle; "
        f"{number(keeper.LIBRARIES_WHOLE_S)} in all",
        LIBRARIES_S,
        ("LIBRARIES_TRIES", "LIBRARIES_PAUSE_S", "LIBRARIES_ANSWER_S", "LIBRARIES_STALL_S", "LIBRARIES_WHOLE_S"),
    ),
    Policy(
        "a hive is started",
        "rbee/setup/attach.py",
        "1",
        "",
        number(keeper.HIVE_START_S),
        keeper.HIVE_START_S,
        ("HIVE_START_S",),
    ),
    Policy(
        "a download breaks, from each source, and of a split model each part; "
        f"{node.DOWNLOAD_TRIES_WITHOUT_NETWORK} tries without a network, "
        f"{node.DOWNLOAD_TRIES_WHEN_CORRUPT} where it comes wrong",
        "remote/rbee_remote/hive/models/download.py",
        f"{node.DOWNLOAD_TRIES}",
        f"{number(node.DOWNLOAD_FIRST_DELAY_S)} doubled, times 1 to {number(node.DOWNLOAD_SPREAD)}, or the server's "
        f"Retry-After; {number(node.DOWNLOAD_LONGEST_DELAY_S)} at most",
        f"{number(node.HUB_API_S)} + {number(node.DOWNLOAD_CONNECT_S)} + {number(node.DOWNLOAD_STALL_S)} idle",
        DOWNLOAD_S,
        ("DOWNLOAD_TRIES", "DOWNLOAD_FIRST_DELAY_S", "DOWNLOAD_LONGEST_DELAY_S", "DOWNLOAD_STALL_S"),
    ),
    Policy(
        "the connection breaks in phases 2 to 7: all of them again over another",
        "rbee/infer/infer.py",
        f"{keeper.RECONNECTS + 1}",
        "",
        f"{number(keeper.REOPEN_TIMEOUT_S)} to reconnect, and the phases",
        REPEATED_S,
        ("RECONNECTS",),
    ),
    Policy(
        "a worker dies before its first token, or is gone with its hive: phases 2 to 8 again",
        "rbee/infer/infer.py",
        f"{keeper.WORKERS_TRIED}",
        "",
        "the phases",
        keeper.WORKERS_TRIED * (REPEATED_S + INFERENCE_S),
        ("WORKERS_TRIED",),
    ),
    Policy(
        "a node is unreachable or has no room, and the user named none: the next one",
        "rbee/infer/infer.py",
        "each node once",
        "",
        "all of the above",
        None,
        (),
    ),
    Policy(
        "the hive has not noticed yet that the worker died",
        "rbee/infer/answer.py",
        f"begun within {number(keeper.NOTICED_S)} s",
        number(keeper.NOTICED_PAUSE_S),
        "-",
        keeper.NOTICED_S,
        ("NOTICED_S", "NOTICED_PAUSE_S"),
    ),
    Policy(
        "all slots of the worker are busy",
        "rbee/infer/answer.py",
        f"{len(keeper.BUSY_DELAYS_S) + 1}",
        listed(keeper.BUSY_DELAYS_S),
        "an outage may come before each",
        INFERENCE_S,
        ("BUSY_DELAYS_S",),
    ),
    Policy(
        "the connection of an answer breaks or is silent; counted anew from each event of the answer",
        "rbee/infer/stream.py",
        f"begun within {number(keeper.OUTAGE_S)} s",
        f"{number(keeper.OUTAGE_PAUSE_S)} doubled, {number(keeper.OUTAGE_LONGEST_PAUSE_S)} at most",
        f"{number(keeper.OUTAGE_REOPEN_S)} to reconnect, {number(ANSWER_TRY_S)} to ask",
        OUTAGE_S,
        ("OUTAGE_S", "OUTAGE_PAUSE_S", "OUTAGE_LONGEST_PAUSE_S", "OUTAGE_REOPEN_S", "ANSWER_SILENCE_S"),
    ),
    Policy(
        "Ctrl-C: the node is told",
        "rbee/infer/answer.py",
        "1, or 2 where the connection is silent",
        "",
        f"{number(keeper.CANCEL_TIMEOUT_S)}; {number(keeper.LOST_TIMEOUT_S)} without a connection",
        keeper.CANCEL_TIMEOUT_S,
        ("CANCEL_TIMEOUT_S", "LOST_TIMEOUT_S"),
    ),
    Policy(
        f"the gateway: a node cannot be reached, or is silent for {number(keeper.HOLD_SILENCE_S)} s, and so its hive "
        "or a worker",
        "rbee/gateway/nodes/node_link.py",
        "until it is there",
        f"{number(keeper.HOLD_PAUSE_S)} doubled, {number(keeper.HOLD_LONGEST_PAUSE_S)} at most; "
        f"{number(keeper.HOLD_REFUSED_PAUSE_S)} where it refuses; each times {number(min(keeper.HOLD_SPREAD))} to "
        f"{number(max(keeper.HOLD_SPREAD))}",
        f"{number(keeper.HOLD_CONNECT_S)} to connect; a request waits {number(keeper.HOLD_AGAIN_S)}",
        None,
        ("HOLD_CONNECT_S", "HOLD_AGAIN_S", "HOLD_SILENCE_S"),
        without_end=True,
    ),
    Policy(
        "the gateway: the inventory that was changed is broken",
        "rbee/gateway/nodes/fleet.py",
        "at each change",
        f"{number(keeper.INVENTORY_LOOK_S)}",
        "",
        None,
        ("INVENTORY_LOOK_S",),
        without_end=True,
    ),
    Policy(
        "a load fails that a gateway asked a node for: the next node, else the next fallback",
        "rbee/gateway/routing/loads.py",
        "with a request that wants it, after the pause",
        f"{number(keeper.LOAD_PAUSE_S)} doubled, {number(keeper.LOAD_LONGEST_PAUSE_S)} at most",
        "phases 2 to 7",
        None,
        ("LOAD_PAUSE_S", "LOAD_LONGEST_PAUSE_S"),
    ),
    Policy(
        "the node that a gateway asked is busy, or the way to it breaks, or its worker or hive is killed",
        "rbee/gateway/routing/loads.py",
        f"begun within {number(keeper.BUSY_NODE_S)} s; {keeper.BROKEN_LOADS} where it is not busy",
        f"{number(keeper.BUSY_NODE_PAUSE_S)} doubled, {number(keeper.BUSY_NODE_LONGEST_PAUSE_S)} at most",
        "phases 2 to 7",
        None,
        ("BUSY_NODE_PAUSE_S", "BUSY_NODE_LONGEST_PAUSE_S", "BROKEN_LOADS"),
    ),
    Policy(
        "a line of a batch gets no answer from a worker; none of these counts while nobody answers",
        "rbee/batch/verdict.py",
        "`--retries` and 1",
        f"{number(keeper.BATCH_PAUSE_S)} doubled, {number(keeper.BATCH_LONGEST_PAUSE_S)} at most",
        "a request to the gateway",
        None,
        ("BATCH_PAUSE_S", "BATCH_LONGEST_PAUSE_S", "BATCH_FATAL_S"),
        without_end=True,
    ),
    Policy(
        "a worker of the gateway, or the way to it, fails a request; without a further token of its answer",
        "rbee/gateway/requests/resuming.py",
        f"{keeper.FAILOVER_IN_A_ROW} workers, {keeper.FAILOVER_TRIES} in all; where connections are lost "
        f"{keeper.FAILOVER_IN_A_ROW} and begun within {number(keeper.FAILOVER_STILL_S)} s",
        f"{number(keeper.FAILOVER_BACK_S)} for the connection, {number(keeper.FAILOVER_RESUME_S)} for another worker, "
        "as long for the only one",
        f"{number(keeper.ANSWER_SILENCE_S)} idle",
        FAILOVER_S,
        ("FAILOVER_IN_A_ROW", "FAILOVER_TRIES", "FAILOVER_STILL_S"),
    ),
)
WHOLE = (
    ("`rbee infer`, warm worker", WARM_S),
    ("`rbee infer`, cold: each step at its limit, none begun again", COLD_S),
    ("`rbee infer`, cold: each begun again as often as it may", COLD_AGAIN_S),
)


def table() -> str:
    lines = [
        "| what goes wrong | owner | tries | pause before the next, s | one try at most, s | worst case, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for policy in POLICIES:
        worst = "for each node" if policy.worst_s is None else number(policy.worst_s)
        worst = "no limit" if policy.without_end else worst
        row = (policy.what, f"`{policy.owner}`", policy.tries, policy.pause, policy.one_try, worst)
        lines.append(f"| {' | '.join(cell or '-' for cell in row)} |")
    lines += ["", "| the whole, on one node over one hop with one key | worst case, s |", "| --- | --- |"]
    lines += [f"| {what} | {number(seconds)} |" for what, seconds in WHOLE]
    return "\n".join(lines)


def test_the_docs_have_the_table_as_computed() -> None:
    found = re.search(r"<!-- retries -->\n\n(.*?)\n\n<!-- /retries -->", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert found[1] == table()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.what[:40])
def test_the_owner_uses_the_constants(policy: Policy) -> None:
    source = (ROOT / policy.owner).read_text(encoding="utf-8")
    assert [name for name in policy.constants if not re.search(rf"\b{name}\b", source)] == []


def test_each_constant_is_used_outside() -> None:
    """One that nobody imports says something that is not so."""
    files = [*(ROOT / "rbee").rglob("*.py"), *(ROOT / "remote/rbee_remote").rglob("*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files if path.name != "retries.py")
    names = [name for module in (keeper, node) for name in vars(module) if name.isupper()]
    assert [name for name in names if not re.search(rf"\b{name}\b", sources)] == []
