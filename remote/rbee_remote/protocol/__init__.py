"""What keeper, hive and worker say to each other. Standard library only: with `codec` and `failures`
beside it, the one part of this package that the keeper imports.

Rules
- Every message is a frozen dataclass. `encode` turns it into JSON values, `decode` checks every field on the way in.
- A field that is unknown is ignored (a newer peer may send more); one that is missing or of the wrong type is an error.
- `PROTOCOL` grows when a peer of the number before could misunderstand; a hive refuses nothing, the keeper compares.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee_remote.protocol.audit import AuditBreak as AuditBreak
    from rbee_remote.protocol.audit import AuditHead as AuditHead
    from rbee_remote.protocol.bench import BenchProgress as BenchProgress
    from rbee_remote.protocol.bench import BenchRequest as BenchRequest
    from rbee_remote.protocol.bench import BenchResult as BenchResult
    from rbee_remote.protocol.bench import BenchTest as BenchTest
    from rbee_remote.protocol.codec import ProtocolError as ProtocolError
    from rbee_remote.protocol.codec import decode as decode
    from rbee_remote.protocol.codec import encode as encode
    from rbee_remote.protocol.codec import parse_json as parse_json
    from rbee_remote.protocol.failures import ErrorCode as ErrorCode
    from rbee_remote.protocol.failures import RemoteError as RemoteError
    from rbee_remote.protocol.generation import AdapterScale as AdapterScale
    from rbee_remote.protocol.generation import CallDelta as CallDelta
    from rbee_remote.protocol.generation import ChatOptions as ChatOptions
    from rbee_remote.protocol.generation import Done as Done
    from rbee_remote.protocol.generation import GenerateRequest as GenerateRequest
    from rbee_remote.protocol.generation import Logprob as Logprob
    from rbee_remote.protocol.generation import Logprobs as Logprobs
    from rbee_remote.protocol.generation import Message as Message
    from rbee_remote.protocol.generation import Sampling as Sampling
    from rbee_remote.protocol.generation import Started as Started
    from rbee_remote.protocol.generation import TokenEvent as TokenEvent
    from rbee_remote.protocol.generation import ToolOptions as ToolOptions
    from rbee_remote.protocol.generation import Usage as Usage
    from rbee_remote.protocol.generation import WorkerTimings as WorkerTimings
    from rbee_remote.protocol.gpus import GpuReport as GpuReport
    from rbee_remote.protocol.hive import Fit as Fit
    from rbee_remote.protocol.hive import HiveInfo as HiveInfo
    from rbee_remote.protocol.hive import HiveNews as HiveNews
    from rbee_remote.protocol.hive import SpawnRequest as SpawnRequest
    from rbee_remote.protocol.hive import StopRequest as StopRequest
    from rbee_remote.protocol.hive import WorkerInfo as WorkerInfo
    from rbee_remote.protocol.load import Lease as Lease
    from rbee_remote.protocol.load import LeaseRequest as LeaseRequest
    from rbee_remote.protocol.load import Served as Served
    from rbee_remote.protocol.load import SlotMemory as SlotMemory
    from rbee_remote.protocol.load import WorkerConfig as WorkerConfig
    from rbee_remote.protocol.load import WorkerNews as WorkerNews
    from rbee_remote.protocol.load import WorkerState as WorkerState
    from rbee_remote.protocol.load import WorkerStatus as WorkerStatus
    from rbee_remote.protocol.load_options import LoadOptions as LoadOptions
    from rbee_remote.protocol.load_options import WorkerOptions as WorkerOptions
    from rbee_remote.protocol.models import DENIED as DENIED
    from rbee_remote.protocol.models import DownloadProgress as DownloadProgress
    from rbee_remote.protocol.models import DownloadRequest as DownloadRequest
    from rbee_remote.protocol.models import ModelInfo as ModelInfo
    from rbee_remote.protocol.models import ModelMeta as ModelMeta
    from rbee_remote.protocol.models import ModelNeeds as ModelNeeds
    from rbee_remote.protocol.models import NeedPoint as NeedPoint
    from rbee_remote.protocol.models import NeedsRequest as NeedsRequest
    from rbee_remote.protocol.models import NewestModel as NewestModel
    from rbee_remote.protocol.models import RegisterRequest as RegisterRequest
    from rbee_remote.protocol.models import Source as Source
    from rbee_remote.protocol.node_load import GpuLoad as GpuLoad
    from rbee_remote.protocol.node_load import NodeLoad as NodeLoad
    from rbee_remote.protocol.node_load import Work as Work
    from rbee_remote.protocol.node_load import WorkerLoad as WorkerLoad
    from rbee_remote.protocol.resume import HEADER_REQUEST as HEADER_REQUEST
    from rbee_remote.protocol.resume import HEADER_TRACK as HEADER_TRACK
    from rbee_remote.protocol.resume import HEADER_USAGE as HEADER_USAGE
    from rbee_remote.protocol.resume import NO_CHOICE as NO_CHOICE
    from rbee_remote.protocol.resume import RESUME_FIELD as RESUME_FIELD
    from rbee_remote.protocol.resume import TRACK_COMMENT as TRACK_COMMENT
    from rbee_remote.protocol.resume import Resume as Resume
    from rbee_remote.protocol.resume import Sent as Sent
    from rbee_remote.protocol.resume import Tracked as Tracked
    from rbee_remote.protocol.resume import TrackedUsage as TrackedUsage
    from rbee_remote.protocol.sweep import FileSeen as FileSeen
    from rbee_remote.protocol.sweep import ProcessSeen as ProcessSeen
    from rbee_remote.protocol.sweep import Survey as Survey
    from rbee_remote.protocol.sweep import TidyReport as TidyReport
    from rbee_remote.protocol.sweep import TidyRequest as TidyRequest
    from rbee_remote.protocol.sweep import TidyResult as TidyResult
else:
    #: What each module gives to this one. Sixty dataclasses take as long to make as Python takes to start, and one
    #: command needs few of them: a module is read when one of its names is asked for.
    _NAMES = {
        "audit": "AuditBreak AuditHead",
        "bench": "BenchProgress BenchRequest BenchResult BenchTest",
        "codec": "ProtocolError decode encode parse_json",
        "failures": "ErrorCode RemoteError",
        "generation": "AdapterScale CallDelta ChatOptions Done GenerateRequest Logprob Logprobs Message Sampling "
        "Started TokenEvent ToolOptions Usage WorkerTimings",
        "gpus": "GpuReport",
        "hive": "Fit HiveInfo HiveNews SpawnRequest StopRequest WorkerInfo",
        "load": "Lease LeaseRequest Served SlotMemory WorkerConfig WorkerNews WorkerState WorkerStatus",
        "load_options": "LoadOptions WorkerOptions",
        "models": "DENIED DownloadProgress DownloadRequest ModelInfo ModelMeta ModelNeeds NeedPoint "
        "NeedsRequest NewestModel RegisterRequest Source",
        "node_load": "GpuLoad NodeLoad Work WorkerLoad",
        "resume": "HEADER_REQUEST HEADER_TRACK HEADER_USAGE NO_CHOICE RESUME_FIELD TRACK_COMMENT Resume Sent "
        "Tracked TrackedUsage",
        "sweep": "FileSeen ProcessSeen Survey TidyReport TidyRequest TidyResult",
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


PROTOCOL = 1
#: Of rbee, on both sides.
VERSION = "0.1.0"
#: That runs what a node gets.
OLDEST_PYTHON = (3, 10)

#: Headers of every request. The keeper's id names its leases, `user@host` (percent-encoded) is for the audit log; the
#: worker's id makes sure that a socket found in a cache still belongs to the worker it was recorded for.
HEADER_KEEPER = "X-Rbee-Keeper"
HEADER_WHO = "X-Rbee-Who"
HEADER_WORKER = "X-Rbee-Worker"
#: "1" for a request that gives way to those without it.
HEADER_BACKGROUND = "X-Rbee-Background"

#: Relative names inside the node's runtime folder (mode 0700).
HIVE_SOCKET = "hive.sock"


def keeper_socket(socket: str) -> str:
    """Where a worker listens for keepers, beside its own `socket`; "" for none.

    There it says `greeting` first, and then speaks HTTP as on the other. A path alone proves nothing: where a folder
    in /tmp was cleaned away, a neighbour may have made it again and listen there himself. He cannot know the secret,
    and so no keeper tells him a prompt.
    """
    return f"{socket.removesuffix('.sock')}.keeper" if socket else ""


def greeting(secret: str) -> bytes:
    """What a worker says first to whoever connects to its `keeper_socket`."""
    return f"rbee {secret}\n".encode()


#: Names of environment variables whose values no process of ours on a node may carry: others can read them there.
SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_KEY|SSH_AUTH_SOCK", re.IGNORECASE)
