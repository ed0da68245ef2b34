"""How a model is loaded: each option declared once, with what keeper, hive and worker have to know of it. Pure.

`LoadOptions` is what somebody said, on the command line or in the inventory. `WorkerOptions` is what a hive is asked
for, and what a worker gets: nothing is left unsaid there, though some may be left for rbee to choose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from rbee_remote.protocol.abilities import SAID_POOLINGS


class KvType(NamedTuple):
    """A type of the KV cache's values. size: bytes of one. ggml: its number, enum ggml_type in ggml.h."""

    size: float
    ggml: int


#: Quantised ones come in blocks of 32 with their scales: ggml-common.h, block_q8_0 ….
KV_TYPES = {
    "f16": KvType(2.0, 1),
    "bf16": KvType(2.0, 30),
    "f32": KvType(4.0, 0),
    "q8_0": KvType(34 / 32, 8),
    "q5_1": KvType(24 / 32, 7),
    "q5_0": KvType(22 / 32, 6),
    "q4_1": KvType(20 / 32, 3),
    "q4_0": KvType(18 / 32, 2),
    "iq4_nl": KvType(18 / 32, 20),
}
QUANTISED_KV = frozenset(name for name, kind in KV_TYPES.items() if kind.size < 2)

#: With their numbers in llama.cpp: enum llama_flash_attn_type in llama.h.
FLASH_ATTENTION = {"auto": -1, "on": 1, "off": 0}

#: What llama.cpp can be compiled for.
COMPILED_BACKENDS = ("cpu", "cuda", "metal", "rocm", "vulkan")
BACKENDS = ("auto", *COMPILED_BACKENDS)

#: Tokens per slot that a worker has at least where nobody said a number, or what the model was trained for if that is
#: less. It gets more where there is memory for it: `hive.fit.options`.
DEFAULT_CTX = 4096
#: Tokens per slot, of any model; slots of a worker.
MOST_CTX, MOST_SLOTS = 2**24, 256
#: The ctx that stands for the most that fits.
AUTO_CTX = 0
#: The number that stands for: rbee chooses, whatever the node's entry in the inventory says.
RBEE_CHOOSES = -1


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number from low to high. words: what may be said in place of a number, and which one it stands for."""

    low: int
    high: int
    words: Mapping[str, int] = field(default_factory=dict)

    @property
    def least(self) -> int:
        """The smallest one that a hive may be asked for."""
        return min((self.low, *(number for number in self.words.values() if number != RBEE_CHOOSES)))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words. what: what they are, for messages."""

    values: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Names:
    """Some words, none of them twice. what: what each is, for messages."""

    what: str


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers from 0 up, not all of them 0."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """As `Adapter.of` reads each."""


Form = Number | Choice | Names | Shares | Adapters

#: The only type of adapter, as its file says, and its name where a request's body has scales.
LORA = "lora"
#: Adapters of a worker.
MOST_ADAPTERS = 32
_SCHEME = re.compile(r"(?:hf|file|https?):", re.IGNORECASE)
_SCALE = re.compile(r"(.+):(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)")


class Adapter(NamedTuple):
    """A LoRA adapter: the ref that names it, or a file of the keeper's machine, and how strongly it is applied."""

    name: str
    scale: float

    @classmethod
    def of(cls, text: str) -> Adapter:
        """Of NAME[:SCALE], where a scale that is left out is 1. Raises ValueError."""
        found = _SCALE.fullmatch(text)
        name, scale = (found[1], float(found[2])) if found else (text, 1.0)
        if not name.strip() or not name.isprintable() or not math.isfinite(scale):
            raise ValueError(f"{text!r} names no adapter")
        return cls(name, scale)

    @property
    def is_ref(self) -> bool:
        """Whether the name is a ref, and no path of the keeper's machine."""
        return bool(_SCHEME.match(self.name))

    @property
    def text(self) -> str:
        """One text for one meaning."""
        return f"{self.name}:{self.scale:g}"


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of a load option beside its name, which is its key in the inventory and in JSON, too.

    form: what its values are. flag: on the command line, "" for its name with dashes; metavar and help: as shown there.
    sizes: it decides what a model needs of memory, whatever computes: `rbee models show` takes it. column: the registry
    has a column of its name, so that a warm worker is known by it without asking the hive.
    """

    form: Form
    metavar: str
    help: str
    flag: str = ""
    sizes: bool = False
    column: bool = False


def _option(form: Form, metavar: str, text: str, **more: Any) -> Any:
    return field(default=None, metadata={"option": Option(form, metavar, text, **more)})


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What was said of how a model is to be loaded; None for nothing. In the order of `rbee infer --help`.

    ctx: tokens per slot, AUTO_CTX for the most that fits. gpu_layers: RBEE_CHOOSES for as many as the GPUs hold.
    """

    ctx: int | None = _option(
        Number(16, MOST_CTX, {"auto": AUTO_CTX}),
        "N",
        "Context in tokens, for each request; auto takes the most that fits. [default: 4096, and more where memory is"
        " free]",
        sizes=True,
    )
    slots: int | None = _option(
        Number(1, MOST_SLOTS), "N", "Requests served at once. [default: 4, or as many as fit]", sizes=True
    )
    kv_type: str | None = _option(
        Choice(tuple(KV_TYPES), "KV cache type"),
        "TYPE",
        "Type of the KV cache: f16, q8_0, q4_0, … [default: f16]",
        sizes=True,
        column=True,
    )
    flash_attention: str | None = _option(
        Choice(tuple(FLASH_ATTENTION), "flash attention setting"),
        "WHEN",
        "auto, on or off. [default: auto]",
        sizes=True,
        column=True,
    )
    devices: tuple[str, ...] | None = _option(
        Names("a device's name"),
        "GPU",
        "Use this GPU: CUDA0, its number or UUID; may be repeated. [default: as few as fit]",
        flag="--device",
        column=True,
    )
    tensor_split: tuple[float, ...] | None = _option(
        Shares(), "A,B,…", "Share of the model for each GPU. [default: by free memory]", column=True
    )
    gpu_layers: int | None = _option(
        Number(0, 4096, {"auto": RBEE_CHOOSES, "all": 4096}),
        "N",
        "Layers on the GPUs: a number, auto or all. [default: auto]",
    )
    lora: tuple[str, ...] | None = _option(
        Adapters(),
        "FILE[:SCALE]",
        "LoRA adapter to apply, a file here or a ref; may be repeated. [default: none, SCALE 1]",
        column=True,
    )

    pooling: str | None = _option(
        Choice(SAID_POOLINGS, "pooling"),
        "TYPE",
        "How texts become vectors where the file does not say, or wrongly: mean, cls, last, rank or none."
        " [default: auto, as the file says]",
        column=True,
    )

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        return tuple(map(Adapter.of, self.lora or ()))

    def with_adapters(self, adapters: Iterable[Adapter]) -> LoadOptions:
        """These, with the adapters by other names."""
        return replace(self, lora=tuple(adapter.text for adapter in adapters))

    def said(self) -> dict[str, Any]:
        """The options that somebody set."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}

    def over(self, less: LoadOptions) -> LoadOptions:
        """These, and what `less` says where these say nothing."""
        return LoadOptions(**{**less.said(), **self.said()})

    def plain(self) -> dict[str, Any]:
        """All of them as TOML and JSON write them: words where a number stands for one, None for what nobody said."""
        return {name: _plain(getattr(self, name), option.form) for name, option in OPTIONS.items()}

    def for_worker(self, backend: str = "auto") -> WorkerOptions:
        """What a hive is asked for: what nobody said is as WorkerOptions has it."""
        said: dict[str, Any] = {name: None if value == RBEE_CHOOSES else value for name, value in self.said().items()}
        return WorkerOptions(backend=backend, **said)


#: By name, in their order.
OPTIONS: dict[str, Option] = {each.name: each.metadata["option"] for each in fields(LoadOptions)}


def _plain(value: Any, form: Form) -> Any:
    if isinstance(form, Number):
        return next((word for word, number in form.words.items() if number == value), value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a model is to be loaded. Two requests with equal model and options share a worker, and so do those of which
    one needs less context. See also `is_open`.

    ctx: tokens per slot, at least that many where a worker runs already; None for what suits the model and the memory
    that is free, DEFAULT_CTX at least or what the model was trained for; AUTO_CTX for the most that fits.
    slots: parallel requests, None for 4 or as many as fit. backend: one of BACKENDS.
    gpu_layers: None for as many as the GPUs hold. threads: None for the number of physical cores the process may use.
    devices: the GPUs to use, by ggml's names (CUDA0), numbers, or beginnings of UUIDs; none for as few as hold it.
    tensor_split: share of the model for each device, in their order; none for by free memory.
    lora: adapters in the order of their ids, each as `Adapter.text` has it, by the ref that the hive's catalog knows.
    pooling: one of SAID_POOLINGS, auto for what the file says.
    """

    ctx: int | None = None
    slots: int | None = None
    backend: str = "auto"
    gpu_layers: int | None = None
    threads: int | None = None
    kv_type: str = "f16"
    flash_attention: str = "auto"
    devices: tuple[str, ...] = ()
    tensor_split: tuple[float, ...] = ()
    lora: tuple[str, ...] = ()
    pooling: str = "auto"

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Raises ValueError."""
        return tuple(map(Adapter.of, self.lora))

    @property
    def uses_gpus(self) -> bool:
        """Whether anything of the model may lie on a GPU, where there is one."""
        return self.backend != "cpu" and self.gpu_layers != 0


#: What a worker has that computes on the processor.
ON_CPU: dict[str, Any] = {"gpu_layers": 0, "devices": (), "tensor_split": ()}
#: What a model is by itself.
NO_ADAPTERS: dict[str, Any] = {"lora": ()}


def is_open(name: str, value: object) -> bool:
    """Whether a field of WorkerOptions leaves the choice to rbee: a worker that has anything there will do. Where no
    adapter was named, none is meant."""
    return value is None or (value == () and name not in NO_ADAPTERS)
