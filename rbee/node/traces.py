"""What rbee left on a node, told apart from what is not rbee's, and its removal. Pure, but for `traces.sh` on the node.

Rules
- Needs nothing on the node but a shell: what has to go may be half there, and Python may be gone.
- Only what has a name that rbee gives is removed; everything else is named and stays, and so do the folders around it.
- A folder goes when it is empty and rbee made it: what a bootstrap made on the way to its home stands in a note there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from rbee.base.errors import NodeError
from rbee.node.probe import Probe
from rbee.transport.connection import quote
from rbee_remote.protocol import ErrorCode

#: In a node's home: the folders that were made to make it, one a line, the deepest first; `rbee uninstall` reads it.
NOTE = ".made-by-rbee"

_HEX = r"[0-9a-f]"
_PART = r"(-[0-9]{5}-of-[0-9]{5})?"
#: What rbee calls its files, by the folder they lie in. A suffix is that of a part or of a draft.
_OURS = {
    "home": re.compile(rf"payloads|runtimes|models|log|{re.escape(NOTE)}|\.rbee-probe-\d+"),
    "payloads": re.compile(rf"{_HEX}{{16}}\.zip(\..+)?"),
    "runtimes": re.compile(rf"{_HEX}{{16}}|uv-[0-9][0-9.]*(\.part-.+)?|wheels|python|\.(staging|removed)-{_HEX}+"),
    "models": re.compile(rf"\.?(incoming-)?({_HEX}{{32}}|{_HEX}{{64}}){_PART}\.(gguf|json)(\..+)?"),
    "log": re.compile(rf"\.?(hive|audit(-[0-9-]+)?|worker-{_HEX}{{16}})\.[\w.-]+"),
    "run": re.compile(rf"hive\.(sock|lock)|worker-{_HEX}{{16}}\.(sock|keeper)|\.\d+"),
}
_MODEL = re.compile(rf"({_HEX}{{64}}|incoming-{_HEX}{{32}}){_PART}\.gguf|{_HEX}{{32}}\.json")
_WORKER_SOCKET = re.compile(rf"/worker-({_HEX}{{16}})\.sock")


@dataclass(frozen=True, slots=True)
class Running:
    """A process of this home. start: names it together with pid. command: hive, worker, download, …"""

    pid: int
    start: str
    command: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Something at an absolute path. section: where it was found, see `traces.sh`. kind: file, folder or link."""

    section: str
    kind: str
    kilobytes: int
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Traces:
    """What `look` found on a node. home: absolute."""

    home: str
    processes: tuple[Running, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def other_hosts(self) -> tuple[str, ...]:
        """Other machines that rbee ran on from this home, as its audit log has them."""
        return tuple(entry.path for entry in self.entries if entry.section == "host")

    @property
    def worker_sockets(self) -> dict[str, str]:
        """Paths of sockets by the id of their worker."""
        found = {entry.path: _WORKER_SOCKET.search(entry.path) for entry in self.entries if entry.section == "run"}
        return {match[1]: path for path, match in found.items() if match}

    @property
    def models(self) -> tuple[Entry, ...]:
        """Whole models that rbee owns, and the catalog's records."""
        return tuple(entry for entry in self.entries if entry.section == "models" and _MODEL.fullmatch(entry.name))

    @property
    def models_mb(self) -> int:
        return sum(entry.kilobytes for entry in self.models) * 1024 // 10**6

    @property
    def foreign(self) -> tuple[str, ...]:
        """Paths of what is not rbee's: files nobody here gave their name, and links in place of rbee's folders."""
        return tuple(entry.path for entry in self.entries if entry.section in _OURS and not _is_ours(entry))

    def removable(self, *, models: bool) -> tuple[str, ...]:
        """Paths of all that is rbee's; the folders around it are left to `fold`. models: the whole ones too."""
        kept = () if models else self.models
        return tuple(
            entry.path
            for entry in self.entries
            if entry.section in _OURS and entry.section != "home" and _is_ours(entry) and entry not in kept
        ) + tuple(entry.path for entry in self.entries if entry.section == "home" and ".rbee-probe-" in entry.name)

    def freed_mb(self, *, models: bool) -> int:
        """What removing gives back, in MB (10**6 bytes); what lies there that is not rbee's counts too."""
        kilobytes = sum(entry.kilobytes for entry in self.entries if entry.section == "total")
        return kilobytes * 1024 // 10**6 - (0 if models else self.models_mb)


def _is_ours(entry: Entry) -> bool:
    if entry.section == "home" and entry.kind == "link":
        return False
    return _OURS[entry.section].fullmatch(entry.name) is not None


def look_script(found: Probe) -> str:
    """Prints what `parse` reads; changes nothing."""
    return _script(found, "look")


def end_script(found: Probe, patience_s: int, commands: Sequence[str] = ()) -> str:
    """Ends every process of the home: SIGTERM, then SIGKILL, each with that many seconds to take effect.

    commands: those alone, such as "hive". Prints a line `PID START GROUP COMMAND` for each that is left.
    """
    words = " ".join(map(quote, commands))
    return _script(found, f"end_all {patience_s:d} {words}", f"running {words}")


def remove_script(found: Probe, traces: Traces, *, models: bool) -> str:
    """Removes what is `removable`, then folders that are empty; stderr says what cannot be removed."""
    note = "keep" if traces.models and not models else "drop"
    paths = traces.removable(models=models)
    return _script(found, *(f"rm -rf -- {quote(path)}" for path in paths), f"fold {quote(NOTE)} {note}")


def parse(output: bytes, home: str) -> Traces:
    """What `look_script` printed, to its end. Raises NodeError INVALID_RESPONSE for anything else."""
    processes, entries = [], []
    for line in output.decode(errors="surrogateescape").split("\0")[:-1]:
        words = line.split(" ", 3)
        if len(words) != 4 or not words[1 if words[0] == "process" else 2].isdecimal():
            raise NodeError(
                ErrorCode.INVALID_RESPONSE, f"the list of files on the node has an invalid line: {line[:80]!r}"
            )
        if words[0] == "process":
            processes.append(Running(int(words[1]), words[2], words[3]))
        else:
            entries.append(Entry(words[0], words[1], int(words[2]), words[3]))
    if not entries or entries.pop().section != "end":
        raise NodeError(ErrorCode.INVALID_RESPONSE, "the list of files on the node is not complete")
    return Traces(home, tuple(processes), tuple(entries))


def _script(found: Probe, *calls: str) -> str:
    values = {"home": found.home, "run_name": found.run_dir.rpartition("/")[2], "proc": "/proc"}
    head = "".join(f"{name}={quote(value)}\n" for name, value in values.items())
    text = files("rbee.node").joinpath("traces.sh").read_text(encoding="utf-8")
    return head + text + "\n".join(calls) + "\n"
