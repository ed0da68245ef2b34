"""Which of the files that rbee made are of no use any more: a survey's, and those of the keeper's own home. Pure.

Rules
- Nothing is removed that something uses, that this keeper would put back, or that is young.
- A home may be shared by several machines, and one sees only its own processes. Each touches the payload and the
  runtime that it uses every hour, and its notes of models that its workers may have still; what is being written is
  young by itself. So two hours of rest are the least, whatever `--older-than` says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from rbee.cleanup.actions import HERE, Kept, NodeSeen, Plan, Policy, RemoveFile, Verdict, sorted_out, span
from rbee_remote.protocol.sweep import FileSeen

DAY_S = 86400.0
#: For how long a file has to be of no use, where nobody says otherwise.
UNUSED_S = 7 * DAY_S
#: The least for what other machines may use through a shared home.
SHARED_LEAST_S = 7200.0
#: A socket at which nobody listens: only whoever is about to listen there could mind.
SOCKET_GRACE_S = 30.0
#: Answers that were saved belong to the user, as does a damaged registry that was set aside.
USERS_S = 30 * DAY_S

_NOUNS = {
    "payload": "code of rbee",
    "runtime": "a Python environment",
    "python": "a Python that no environment is made from",
    "staging": "left of an interrupted installation",
    "wheels": "packages that were unpacked long since",
    "uv": "a tool of the installation",
    "part": "left of an interrupted upload",
    "download": "left of an interrupted download",
    "model": "a model that no record names any more",
    "log": "the log of a worker that is gone",
}
_WORKER = re.compile(r"worker-([0-9a-f]{16})")


def judge_file(node: str, file: FileSeen, seen: NodeSeen, policy: Policy) -> Verdict:
    """What to do about one file of a node."""
    why_not = _user(file, seen, policy)
    if why_not:
        return Kept(node, file.path, why_not)
    if file.kind == "socket":
        if file.idle_s < SOCKET_GRACE_S:
            return Kept(node, file.path, f"nobody listens there, but it is only {span(file.idle_s)} old")
        return RemoveFile(node, "nobody listens there", file)
    if file.kind not in _NOUNS:
        return Kept(node, file.path, f"this rbee does not know what a {file.kind} is for")
    return _by_age(node, file, f"{_NOUNS[file.kind]}, unused", _least(policy))


def judge_here(files: Sequence[FileSeen], policy: Policy) -> Plan:
    """What to do about the files of the keeper's own home, as `keeper_home.look` lists them."""
    return sorted_out([_judge_own(file, policy) for file in files])


def _judge_own(file: FileSeen, policy: Policy) -> Verdict:
    if file.path in policy.in_use:
        return Kept(HERE, file.path, "this rbee uses it")
    match file.kind:
        case "answer":
            return _by_age(HERE, file, "an answer that was saved when its worker died, kept", USERS_S)
        case "registry":
            return _by_age(HERE, file, "a damaged registry that was set aside, kept", USERS_S)
    nouns = {**_NOUNS, "draft": "left of an interrupted write"}
    return _by_age(HERE, file, f"{nouns[file.kind]}, unused", _least(policy))


def _least(policy: Policy) -> float:
    return UNUSED_S if policy.older_than_s is None else max(policy.older_than_s, SHARED_LEAST_S)


def _by_age(node: str, file: FileSeen, what: str, least_s: float) -> RemoveFile | Kept:
    if file.idle_s < least_s:
        return Kept(node, file.path, f"{what} for {span(file.idle_s)}, which is less than {span(least_s)}")
    return RemoveFile(node, f"{what} for {span(file.idle_s)}", file)


def _user(file: FileSeen, seen: NodeSeen, policy: Policy) -> str:
    """What needs the file, as a clause; "" for nothing that is known."""
    if file.user:
        return f"{file.user} uses it"
    if file.path in policy.in_use:
        return "this keeper uses it"
    path = PurePosixPath(file.path)
    processes = [process for process in seen.survey.processes if process.state != "Z"]
    if file.kind == "payload" and path.stem in {
        seen.hive.payload if seen.hive else "",
        *(p.payload for p in processes),
    }:
        return "a process on that machine runs from it"
    named = _WORKER.search(path.name)
    if named and named[1] in {*(worker.id for worker in seen.workers), *(p.instance for p in processes)}:
        return "its worker runs"
    if path.name == "hive.sock" and (seen.hive or any(process.command == "hive" for process in processes)):
        return "a hive runs"
    return ""
