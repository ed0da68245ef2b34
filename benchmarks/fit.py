"""What rbee says a model needs, against the resident memory of a worker that has computed a prompt as long as its
context: by the formula over the file's metadata, and as llama.cpp measures it without allocating."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import Comparison
from benchmarks.testbed import keeper
from rbee_remote.system import unix_http
from tests.testbed.cli import Rbee

MODEL = "smollm2:135m"
#: More than what is resident by a tenth at most, and never less.
LEAST, MOST = 1.0, 1.1


@dataclass(frozen=True, slots=True)
class Case:
    """ctx: tokens per slot."""

    ctx: int
    slots: int = 1
    kv_type: str = "f16"

    @property
    def name(self) -> str:
        return f"{self.slots} x {self.ctx} tokens in {self.kv_type}"


CASES = (
    *(Case(ctx) for ctx in (2048, 4096, 8192)),
    *(Case(2048, slots) for slots in (4, 8)),
    *(Case(2048, 4, kv_type) for kv_type in ("q8_0", "q4_0")),
)


def measure() -> list[Comparison]:
    with keeper() as rbee:
        first = rbee("infer", "--node", "local", "--max-tokens", "1", "--json", "Hello").lines()[-1]  # sets the node up
        rbee("workers", "stop", first["worker"])  # it would serve those that need less context
        formulas = {case: _formula_mb(rbee, case) for case in CASES}  # before llama.cpp has told better
        figures = []
        for case in CASES:
            real_mb = _resident_mb(rbee, case)
            figures += [_compare(f"{case.name}, by formula", formulas[case], real_mb)]
            figures += [_compare(f"{case.name}, as measured", _measured_mb(rbee, case), real_mb)]
    return figures


def _compare(name: str, ours_mb: float, real_mb: float) -> Comparison:
    ratio = round(ours_mb / real_mb, 3)
    return Comparison(name, ratio, MOST, "x", "resident", (ours_mb,), (real_mb,), least=LEAST, samples_in="MB")


def _resident_mb(rbee: Rbee, case: Case) -> float:
    """Of a worker after a prompt that leaves little of its context; it is stopped then."""
    prompt = "word " * (case.ctx - 64)
    words = ["--ctx", str(case.ctx), "--slots", str(case.slots), "--kv-type", case.kv_type, "--max-tokens", "8"]
    answer = rbee("infer", "--node", "local", "--json", "--raw", "-", *words, stdin=prompt).lines()[-1]
    used = answer["usage"]["prompt_tokens"]
    if used < 0.95 * case.ctx:
        raise RuntimeError(f"the prompt has {used} tokens, which does not fill a context of {case.ctx}")
    (worker,) = (info for info in rbee("workers", "list", "--json").json() if info["id"] == answer["worker"])
    if (worker["ctx"], worker["slots"], worker["options"]["kv_type"]) != (case.ctx, case.slots, case.kv_type):
        raise RuntimeError(f"another worker answered: {worker}")
    resident: float = psutil.Process(worker["pid"]).memory_info().rss / 1e6
    rbee("workers", "stop", worker["id"])
    return round(resident, 1)


def _formula_mb(rbee: Rbee, case: Case) -> float:
    """What preflight goes by while memory is plentiful."""
    (hive,) = (row["hive"] for row in rbee("hive", "status", "local", "--json").json())
    options = {"ctx": case.ctx, "slots": case.slots, "kv_type": case.kv_type}
    spawn = {"model": MODEL, "options": options}
    status, fit = unix_http.request(Path(hive["socket"]), "POST", "/v1/preflight", body=spawn, timeout=60)
    if status != 200 or fit["measured"]:
        raise RuntimeError(f"no formula: {json.dumps(fit)}")
    return float(fit["needed_mb"])


def _measured_mb(rbee: Rbee, case: Case) -> float:
    """What llama.cpp says it would take."""
    words = ["--ctx", str(case.ctx), "--slots", str(case.slots), "--kv-type", case.kv_type]
    (shown,) = rbee("models", "show", MODEL, "--node", "local", "--json", *words).json()["models"]
    if not shown["measured"]:
        raise RuntimeError("llama.cpp did not measure")
    (point,) = shown["points"]
    return float(point["needed_mb"])
