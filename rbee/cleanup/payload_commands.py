"""A command of this keeper's payload on a node that may have nothing of rbee: no hive, no runtime, a full disk.

Rules
- Where the node has this payload, it runs from there. Else it travels inside the script and runs from memory: what a
  clean-up needs must not have to be put on a disk first.
- Any Python from 3.10 on will do; these commands need nothing but its standard library.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from rbee.base.errors import NodeError
from rbee.node.diagnosis import check_home
from rbee.node.probe import Probe
from rbee.setup.base.payload import Payload, build_payload
from rbee.transport.connection import Connection, quote
from rbee_remote.protocol import (
    OLDEST_PYTHON,
    ErrorCode,
    GpuReport,
    ProtocolError,
    RemoteError,
    Survey,
    TidyReport,
    TidyRequest,
    decode,
    encode,
    parse_json,
)

SURVEY_TIMEOUT_S = 60.0
#: Beyond the patience of the escalation: folders of a slow file system take their time to remove.
TIDY_TIMEOUT_S = 300.0
#: A driver starts its GPUs first, a second or two for each.
GPUS_TIMEOUT_S = 30.0
#: Steps of the escalation, which is gone through for hives first and then for everything else.
_STOP_STEPS = 6

#: A node has a handful of each; one that says otherwise is not believed.
MAX_PROCESSES = 10_000
MAX_FILES = 100_000
MAX_GPUS = 512
_MAX_TEXT = 4096

#: Reads two lines of base64 on stdin: the payload ("" where argv names one on the disk), and the command's own stdin.
#: /proc/self/fd is what zipimport can open of a file that has no name.
_BOOT = """\
import base64, io, os, sys, tempfile
given = sys.stdin.buffer.read().split(b"\\n")
path, folder = sys.argv.pop(1), None
if not path:
    data = base64.b64decode(given[0])
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("rbee")
        path = "/proc/self/fd/%d" % descriptor
    else:
        folder = tempfile.TemporaryDirectory()
        path = os.path.join(folder.name, "payload.zip")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb", closefd=folder is not None) as file:
        file.write(data)
sys.stdin = io.TextIOWrapper(io.BytesIO(base64.b64decode(given[1])), encoding="utf-8")
sys.path.insert(0, path)
sys.dont_write_bytecode = True
try:
    try:
        from rbee_remote.__main__ import main
    except ImportError:
        sys.exit(125)
    main()
finally:
    if folder:
        folder.cleanup()
"""


async def run_payload(
    connection: Connection, found: Probe, words: Sequence[str], *, stdin: bytes = b"", timeout: float
) -> bytes:
    """The stdout of a payload command, such as `("survey", "--home", …)`, at most `shell.MAX_ANSWER` bytes.

    stdin: UTF-8 text. timeout: seconds for all of it. Raises NodeError: what the command said, NODE_UNSUPPORTED where
    no Python on the node will do or others can change its home, BOOTSTRAP_FAILED where it ended without a word; and
    ConnectError.
    """
    check_home(found)  # programs of the home are run
    done = await connection.run(script(found, build_payload(), words, stdin), timeout=timeout)
    if done.status == _NO_PAYLOAD and found.payloads:  # removed since the probe, or damaged
        bare = replace(found, payloads=frozenset())
        done = await connection.run(script(bare, build_payload(), words, stdin), timeout=timeout)
    if done.status == 0:
        return done.stdout
    if done.status == _NO_PYTHON:
        raise _no_python("none of its Pythons starts", done.stderr.strip()[-300:])
    raise _failure(words[0], done.stdout, done.stderr, done.status)


async def survey(connection: Connection, found: Probe) -> Survey:
    """What of rbee is on the node. Raises as `run_payload`."""
    words = ("survey", "--home", found.home, "--run-dir", found.run_dir)
    seen = _decode(Survey, await run_payload(connection, found, words, timeout=SURVEY_TIMEOUT_S))
    texts = [seen.host, seen.boot_id, *(file.path for file in seen.files), *(file.user for file in seen.files)]
    texts += [text for process in seen.processes for text in (process.command, process.payload, process.instance)]
    too_many = len(seen.processes) > MAX_PROCESSES or len(seen.files) > MAX_FILES
    if too_many or any(len(text) > _MAX_TEXT for text in texts):
        raise _nonsense("survey", "it names more than a node can have")
    if seen.home != found.home or seen.run_dir != found.run_dir:
        raise _nonsense("survey", "it is of other folders than those that were asked for")
    return seen


async def gpus(connection: Connection, found: Probe) -> GpuReport:
    """How the node's GPUs fare. Raises as `run_payload`."""
    told = _decode(GpuReport, await run_payload(connection, found, ("gpus",), timeout=GPUS_TIMEOUT_S))
    if max(map(len, (told.gpus, told.silent, told.xids, told.on_bus))) > MAX_GPUS:
        raise _nonsense("gpus", "it names more than a node can have")
    return told


async def tidy(connection: Connection, found: Probe, request: TidyRequest) -> TidyReport:
    """End and remove what `request` names, as far as it still is what was surveyed. Raises as `run_payload`."""
    stdin = json.dumps(encode(request)).encode()
    timeout = _STOP_STEPS * request.patience_s + TIDY_TIMEOUT_S
    report = _decode(TidyReport, await run_payload(connection, found, ("tidy",), stdin=stdin, timeout=timeout))
    if len(report.results) != len(request.processes) + len(request.files):
        raise _nonsense("tidy", "it has not one result for each thing that was asked for")
    return report


#: Linux takes 128 KiB for an argument of a program.
_PIECE = 2**16

#: What the script exits with where no Python starts, and where the payload cannot be imported.
_NO_PYTHON, _NO_PAYLOAD = 126, 125


def script(found: Probe, payload: Payload, words: Sequence[str], stdin: bytes) -> str:
    """POSIX sh. Raises NodeError NODE_UNSUPPORTED where the probe saw no Python that will do.

    In pieces, because printf is not every shell's own. A here document would lie in a file of /tmp for a while.
    """
    pythons = list(_pythons(found))
    if not pythons:
        raise _no_python("it has none", "")
    on_node = f"{found.home}/payloads/{payload.name}" if payload.digest in found.payloads else ""
    sent = b"" if on_node else payload.data
    lines = f"{base64.b64encode(sent).decode()}\n{base64.b64encode(stdin).decode()}\n"
    pieces = [lines[start : start + _PIECE] for start in range(0, len(lines), _PIECE)]
    return "\n".join(
        [
            f"for python in {' '.join(map(quote, pythons))}; do",
            '  if "$python" -I -c "" 2>/dev/null; then break; fi; python=',
            "done",
            f'[ -n "$python" ] || exit {_NO_PYTHON}',
            f"{{ {' '.join(f'printf %s {quote(piece)};' for piece in pieces)} }} |",
            f'  "$python" -I -c {quote(_BOOT)} {" ".join(map(quote, [on_node, *words]))}',
        ]
    )


def _pythons(found: Probe) -> Iterator[str]:
    """Those of runtimes first: they have what a command can use beyond the standard library."""
    for key in sorted(found.runtimes, reverse=True):
        yield f"{found.home}/runtimes/{key}/bin/python"
    for python in found.pythons:
        if python.version >= OLDEST_PYTHON:
            yield python.path


T = TypeVar("T")


def _decode(kind: type[T], output: bytes) -> T:
    try:
        return decode(kind, parse_json(output))
    except ProtocolError as error:
        raise _nonsense(kind.__name__, str(error)[:200]) from error


def _nonsense(what: str, reason: str) -> NodeError:
    return NodeError(
        ErrorCode.INVALID_RESPONSE,
        f"the node's answer to {what.lower()} is not valid",
        hint="check the node: its Python may have been tampered with",
        details={"reason": reason},
    )


def _no_python(why: str, said: str) -> NodeError:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return NodeError(
        ErrorCode.NODE_UNSUPPORTED,
        f"the node needs a Python {oldest} or newer for this, and {why}",
        hint="install one on the node (apt install python3, dnf install python3, apk add python3)",
        details={"said": said} if said else {},
    )


def _failure(command: str, stdout: bytes, stderr: str, status: int) -> NodeError:
    lines = stdout.splitlines()
    try:
        answer = parse_json(lines[-1]) if lines else None
    except ProtocolError:
        answer = None
    if isinstance(answer, dict) and "error" in answer:
        return NodeError.from_remote(RemoteError.decode(answer))
    said = [line for line in stderr.strip().splitlines() if line.strip()]
    return NodeError(
        ErrorCode.BOOTSTRAP_FAILED,
        f"`{command}` could not be run on the node: {said[-1][:200] if said else f'status {status}'}",
        hint="`rbee nodes check NODE` looks for the cause",
        details={"status": status, "stderr": "\n".join(said[-12:])},
    )
